"""Edit tuples of pictures (ByG)."""
