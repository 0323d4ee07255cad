"""`triton BUNDLE --out DIR`: a bundle as a model repository of Triton Inference Server."""
