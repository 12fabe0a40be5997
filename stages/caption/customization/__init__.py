"""One object, and settings to show it in (NP-Edit)."""
