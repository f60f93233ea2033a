"""Teachers of every kind: networks, ONNX files, several of them as one."""
