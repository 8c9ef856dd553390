"""One graph for every batch size."""
