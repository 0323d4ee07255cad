"""Image files, the evaluation transform, and the images that 8-bit ranges are measured on."""
