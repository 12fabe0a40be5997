"""What runs: the pipelines, their profiles and their command line."""
