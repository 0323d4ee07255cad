"""Stage 3: rotary tables, in NumPy."""
