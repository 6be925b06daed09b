"""Checkpoints on disk: reading Hugging Face directories, converting GGUF, fetching from the hub."""
