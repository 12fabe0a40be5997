"""Captions and clips whose style is to be changed (ByG on video)."""
