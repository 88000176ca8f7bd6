"""Write files completely or not at all: atomic writes, checksummed tensors, checkpoints and artifacts."""
