"""Stage 6: runtimes. One file each, and each imports its runtime in its constructor only."""
