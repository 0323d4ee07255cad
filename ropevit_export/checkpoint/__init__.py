"""Stage 1: weights from the hub, its cache or a local file, as named tensors with their provenance."""
