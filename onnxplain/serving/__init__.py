"""Explanations for many callers."""
