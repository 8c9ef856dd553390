"""Operators outside of the canonical set, rewritten as standard ones."""
