"""Traits of operators: what other packages need to know about an operator, as flags in its row of the table."""

from __future__ import annotations

import enum

from onnxplain.graph.inference import RESULTS, ShapeRule


class Trait(enum.Flag):
    """A property that an operator has at each of its nodes.

    A row states the traits that some package asks for. An operator may have a property without the trait; then a
    package takes the general way. A Flag, so that ``Trait.RESHAPES | Trait.PASSES`` matches either.
    """

    NONE = 0

    # Where the elements of the output come from
    ELEMENTWISE = enum.auto()  # computes each element from the operands' elements at the same place, with broadcasting
    PASSES = enum.auto()  # returns the numbers of its first operand, perhaps in another dtype
    RESHAPES = enum.auto()  # returns the elements of its first operand in the same order, in another shape
    MOVES = enum.auto()  # returns elements of its first operand, chosen by their positions only
    REDUCES = enum.auto()  # computes one number from all elements along some axes
    ALONG_AXIS = enum.auto()  # computes along its attribute ``axis``, independently at each position of the other axes
    ALONG_CHANNELS = enum.auto()  # computes along axis 1, independently at each position of the other axes
    SLIDING = enum.auto()  # computes each element from a window that slides over the spatial axes, from axis 2 on
    SIZES = enum.auto()  # returns sizes of its operand, whatever the numbers in it
    READS = enum.auto()  # reads elements of its first operand; the other operands say where, or with which weights
    LOOKS_UP = enum.auto()  # takes an integer operand as an index, of a row in a table or of a one in zeros

    # Layers
    LAYER = enum.auto()  # linear layer; its second operand holds weights, which ONNX Runtime copies for CPU kernels
    CONTRACTS = enum.auto()  # sums products of elements of its operands
    MIXES_CHANNELS = enum.auto()  # computes weighted sums over the channels of its first operand
    CHANNELS_FIRST = enum.auto()  # reads and writes feature maps of shape (samples, channels, spatial sizes ...)
    RECURRENT = enum.auto()  # layer with a state, over time; the walk goes through it as a Loop of its steps
    CLASSIFIES = enum.auto()  # chooses among named classes, and returns their scores as its second output

    # Kinds of functions
    AFFINE = enum.auto()  # scales or shifts one operand, if the others are constants
    QUADRATIC = enum.auto()  # a quadratic form of its operands, or the square root of a quadratic form
    STANDARDIZES = enum.auto()  # subtracts the mean of its first operand, and divides by the standard deviation
    MINIMUM = enum.auto()  # returns the least of several elements
    ZERO_GRADIENT = enum.auto()  # has a gradient of zero: small changes of a float operand do not change the output

    # Numbers and sizes of the output
    NON_NEGATIVE = enum.auto()  # returns no negative numbers
    KEEPS_NON_NEGATIVE = enum.auto()  # returns no negative numbers if no operand has any (indices may be negative)
    RANDOM = enum.auto()  # returns other numbers at each run
    DATA_SIZED = enum.auto()  # returns outputs whose sizes depend on the numbers in its operands
    TAKES_NAN = enum.auto()  # treats NaN as a missing value, or tests for it

    # Integers and booleans that stand for floats, see `onnxplain.backward.integers`
    ON_INTEGERS = enum.auto()  # computes each number from integers at the same place
    ON_BOOLEANS = enum.auto()  # computes each number or boolean from booleans at the same place, or chooses by them


def inferred_traits(op: str) -> Trait:
    """The traits that follow from the table of `onnxplain.graph.inference`, which rows need not repeat."""
    elementwise = op in RESULTS and RESULTS[op].shape is ShapeRule.ELEMENTWISE
    return Trait.ELEMENTWISE if elementwise else Trait.NONE
