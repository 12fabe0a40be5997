"""Training: `flow` (the mathematics), `methods` and `backbones` (one file each), `engine` (the loop)."""
