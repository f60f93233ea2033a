"""Students as ONNX files: written, quantised, checked and run."""
