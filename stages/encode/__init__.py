"""Latents and text embeddings of the training tuples, computed once."""
