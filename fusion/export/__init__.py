"""Export a fusion as one model: ONNX, its torch form, and 8-bit integers."""
