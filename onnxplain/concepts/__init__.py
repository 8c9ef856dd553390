"""What the units of a layer stand for, over data sets."""
