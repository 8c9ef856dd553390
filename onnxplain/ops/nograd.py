"""Operators whose output does not change when a float input changes a little: their gradient is zero, on purpose."""

from __future__ import annotations

from onnxplain.ops.table import OpTable
from onnxplain.ops.traits import Trait

TABLE = OpTable(traits=Trait.ZERO_GRADIENT)

TABLE.without_vjp("Constant", "ConstantOfShape", "EyeLike")
TABLE.without_vjp("Shape", "Size", traits=Trait.SIZES)

# Comparisons and logic
TABLE.without_vjp("Greater", "GreaterOrEqual", "IsInf", "Less", "LessOrEqual")
TABLE.without_vjp("Equal", traits=Trait.LOOKS_UP)  # with the numbers from 0 on: one-hot
TABLE.without_vjp("IsNaN", traits=Trait.TAKES_NAN)
TABLE.without_vjp("And", "Not", "Or", "Xor", traits=Trait.ON_BOOLEANS)
TABLE.without_vjp("BitCast")
TABLE.without_vjp("BitwiseNot", traits=Trait.ELEMENTWISE)
TABLE.without_vjp(*("BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor"), traits=Trait.ELEMENTWISE | Trait.ON_INTEGERS)

# Steps, and choices by index
TABLE.without_vjp("ArgMax", "ArgMin", "Ceil", "Floor", "Round", "Sign")
TABLE.without_vjp("Hardmax", traits=Trait.ALONG_AXIS)
TABLE.without_vjp("NonMaxSuppression", "NonZero", traits=Trait.DATA_SIZED)
TABLE.without_vjp("DynamicQuantizeLinear")  # the scale, which depends on the range of the input, counts as constant

TABLE.without_vjp(
    *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    traits=Trait.RANDOM,
)

# Windows of signals: they depend on their size only
TABLE.without_vjp("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix")

# Text, images, and the state of sequences and optionals
TABLE.without_vjp("ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "TfIdfVectorizer")
TABLE.without_vjp("StringSplit", traits=Trait.DATA_SIZED)
TABLE.without_vjp("OptionalHasElement", "SequenceEmpty", "SequenceLength")

# Steps, and tables of categories. Trees are steps, too, but nearly all of their model: a gradient of zero would explain
# nothing without saying so, and gradient methods refuse them.
TABLE.without_vjp("ai.onnx.ml.Binarizer", "ai.onnx.ml.CategoryMapper")
TABLE.without_vjp("ai.onnx.ml.LabelEncoder", traits=Trait.ON_INTEGERS)
TABLE.without_vjp("ai.onnx.ml.OneHotEncoder", traits=Trait.LOOKS_UP)
