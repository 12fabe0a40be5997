"""Video metrics: how a clip moves, flickers and looks, and whether an edit keeps the source's motion."""
