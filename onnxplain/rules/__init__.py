"""Rules: how a node redistributes what arrives at its output."""
