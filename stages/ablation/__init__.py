"""Which parts carry a method: one taken away at a time, as in the papers' tables, all trained and scored alike."""
