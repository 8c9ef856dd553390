"""The reverse walk: from the explained output back to the explained tensors."""
