"""What this machine is, and what its files and GPUs are known by."""
