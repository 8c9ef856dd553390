"""What is asked of a model: a quantity, in terms of inputs or internal tensors."""
