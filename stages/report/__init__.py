"""One self-contained page that shows what a run did and what came out, and its tables as CSV."""
