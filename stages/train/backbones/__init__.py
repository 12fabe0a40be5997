"""One file a backbone: encode text, encode and decode pixels, velocity given a reference, positions."""
