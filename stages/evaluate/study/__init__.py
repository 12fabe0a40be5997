"""A human study: which of two methods' edits people prefer, asked on a small web page, with tokens and checks."""
