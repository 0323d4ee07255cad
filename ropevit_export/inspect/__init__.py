"""`inspect BUNDLE`: what an engine runs, moves and multiplies, and whether it can run here. No GPU needed."""
