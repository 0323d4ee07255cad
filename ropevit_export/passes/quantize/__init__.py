"""8-bit products: codes, measured ranges, and the two lowerings, for engines and for ONNX Runtime on a CPU."""
