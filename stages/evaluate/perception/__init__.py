"""Metrics by models that look: CLIP directional, CLIPScore, DINO and DINOv2, masked DINOv2, TIFA."""
