"""The starter: a small world with truth, and tiny, really trained models of the real architectures."""
