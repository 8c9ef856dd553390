"""The points at which a method looks at the model, and their weights."""
