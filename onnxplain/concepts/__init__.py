"""Concepts: what the units of a layer contribute to predictions, over data sets."""

from onnxplain.concepts.carried import Carried
from onnxplain.concepts.influence import influence
from onnxplain.concepts.units import SIGNS, Agreement, Influence, Unit

__all__ = ["SIGNS", "Agreement", "Carried", "Influence", "Unit", "influence"]
