"""Stage 8: the folder that is shipped, whole or not at all."""
