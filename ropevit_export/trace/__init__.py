"""Stage 4: the folded deploy form of a model, traced to ONNX."""
