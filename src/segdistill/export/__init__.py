"""From a finished student to float32 and int8 ONNX files."""
