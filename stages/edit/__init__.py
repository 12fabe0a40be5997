"""Batch inference: every editor, trained here or a baseline, over a benchmark."""
