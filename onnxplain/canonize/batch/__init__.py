"""Graphs that hold for every batch size."""
