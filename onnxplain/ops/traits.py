"""Traits of operators: properties of one operator that other packages ask the table about, instead of listing names."""

from __future__ import annotations

import enum

from onnxplain.graph.inference import RESULTS, ShapeRule


class Trait(enum.Flag):
    """What is true of an operator at each of its nodes. A trait that an operator lacks may still hold for it.

    A Flag, so that ``Trait.RESHAPES | Trait.PASSES`` stands for either.
    """

    NONE = 0

    # Which elements of the operands an element of the output depends on
    ELEMENTWISE = enum.auto()  # those at the same place; the operands are broadcast against each other
    PASSES = enum.auto()  # the one at the same place, with the same number, perhaps in another dtype
    RESHAPES = enum.auto()  # one, with the same number; all are there, in the same order, in another shape
    MOVES = enum.auto()  # one of the first operand, with the same number, chosen by its place alone
    REDUCES = enum.auto()  # all along some axes
    ALONG_AXIS = enum.auto()  # those along the attribute ``axis``; the places along other axes are treated apart
    ALONG_CHANNELS = enum.auto()  # those along axis 1; the places along other axes are treated apart
    SLIDING = enum.auto()  # those in a window that slides over the spatial axes, which are behind the first two
    SIZES = enum.auto()  # none: the output tells the sizes of the operand
    READS = enum.auto()  # some of the first operand; the other operands say where, or how much of each
    LOOKS_UP = enum.auto()  # an integer stands for a row of a table, or for a place in a one-hot vector

    # Layers
    LAYER = (
        enum.auto()
    )  # linear; the second operand holds weights, which ONNX Runtime lays out anew for its CPU kernels
    CONTRACTS = enum.auto()  # sums products of the operands' elements
    MIXES_CHANNELS = enum.auto()  # weighs the channels of its first operand, and adds them up
    CHANNELS_FIRST = enum.auto()  # reads and writes feature maps of shape (samples, channels, spatial sizes ...)
    RECURRENT = enum.auto()  # a layer over time, which is written out as a loop before the reverse walk
    CLASSIFIES = enum.auto()  # chooses between classes with names, and gives their scores as a second output

    # What kind of function it is
    AFFINE = enum.auto()  # of one operand, the others (one at most, or one per channel) constant: scale and shift
    QUADRATIC = enum.auto()  # a quadratic form of the operands, or the square root of one
    STANDARDIZES = enum.auto()  # subtracts a mean and divides by a standard deviation
    MINIMUM = enum.auto()  # gives the least of several elements
    ZERO_GRADIENT = enum.auto()  # a small change of a float operand does not change the output

    # What numbers it gives
    NON_NEGATIVE = enum.auto()  # none below zero, whatever the operands
    KEEPS_NON_NEGATIVE = enum.auto()  # none below zero, where the float operands have none
    RANDOM = enum.auto()  # other numbers each time
    DATA_SIZED = enum.auto()  # as many as the numbers in the operands say, or what they are like
    TAKES_NAN = enum.auto()  # NaN in the operand stands for a missing value

    # Integers and booleans that stand for floats (see `onnxplain.backward.integers`)
    ON_INTEGERS = enum.auto()  # calculates a number from the integers at the same place
    ON_BOOLEANS = enum.auto()  # calculates from booleans, or chooses by them, at the same place


def inferred_traits(op: str) -> Trait:
    """The traits that follow from how the shape of the operator's result is inferred."""
    return Trait.ELEMENTWISE if op in RESULTS and RESULTS[op].shape is ShapeRule.ELEMENTWISE else Trait.NONE
