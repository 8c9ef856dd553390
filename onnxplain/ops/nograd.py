"""Operators whose output does not change when a float input changes a little: their gradient is zero, on purpose."""

from __future__ import annotations

ZERO_GRADIENT: frozenset[str] = frozenset(
    # shapes and constants
    "Shape Size Constant ConstantOfShape EyeLike Range "
    # comparisons and logic
    "Equal Greater GreaterOrEqual Less LessOrEqual And Or Xor Not IsInf IsNaN "
    "BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor "
    # steps
    "Ceil Floor Round Sign Hardmax ArgMax ArgMin NonZero NonMaxSuppression "
    # random numbers
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial "
    # windows and text
    "BlackmanWindow HammingWindow HannWindow MelWeightMatrix StringNormalizer TfIdfVectorizer".split()
)
