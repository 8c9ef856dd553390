"""Operators whose output does not change when a float input changes a little: their gradient is zero, on purpose."""

from __future__ import annotations

from onnxplain.graph.ir import Node

ZERO_GRADIENT: frozenset[str] = frozenset(
    [
        *("Constant", "ConstantOfShape", "EyeLike", "Shape", "Size"),
        # comparisons and logic
        *("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor"),
        *("BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
        # steps, and choices by index
        *("ArgMax", "ArgMin", "Ceil", "Floor", "Hardmax", "NonMaxSuppression", "NonZero", "Round", "Sign"),
        "DynamicQuantizeLinear",  # the scale that the range of its input gives counts as constant
        # random numbers
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        # windows: their size is all that they depend on
        *("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"),
        # text, pictures, and what sequences and optionals hold
        *("ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
        *("OptionalHasElement", "SequenceEmpty", "SequenceLength"),
        # Steps, and what looks up categories. Trees are steps, too, but they are no part of a model that could be left
        # out of an explanation in silence: gradient methods refuse them.
        *(f"ai.onnx.ml.{op}" for op in ("Binarizer", "CategoryMapper", "LabelEncoder", "OneHotEncoder")),
    ]
)


def stops_gradients(node: Node) -> bool:
    """Whether a node calculates with floats without passing gradients on; one that asks for sizes does not."""
    return node.operator in ZERO_GRADIENT - {"Shape", "Size"}
