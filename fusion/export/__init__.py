"""Write a fusion as one model file: ONNX, its torch form, and 8-bit integers."""
