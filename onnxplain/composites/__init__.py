"""Which rule each node gets."""
