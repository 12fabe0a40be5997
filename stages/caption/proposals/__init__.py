"""Edits of a picture, proposed and then verified (NP-Edit)."""
