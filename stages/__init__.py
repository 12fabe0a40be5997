"""What each node of the graph does, a folder each."""
