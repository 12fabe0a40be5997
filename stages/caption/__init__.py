"""The data engines: what a vision-language model is asked about rows, and which answers become training data."""
