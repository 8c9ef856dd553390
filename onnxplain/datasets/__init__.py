"""Data sets that do not fit in memory."""
