"""Operators of which only traits are known: they are written with others before the reverse walk, or refused by it."""

from __future__ import annotations

from onnxplain.ops.table import OpTable
from onnxplain.ops.traits import Trait

TABLE = OpTable()

TABLE.without_vjp("GRU", "LSTM", "RNN", traits=Trait.RECURRENT | Trait.MIXES_CHANNELS)
TABLE.without_vjp(
    "ai.onnx.ml.Imputer", "ai.onnx.ml.TreeEnsemble", "ai.onnx.ml.TreeEnsembleRegressor", traits=Trait.TAKES_NAN
)
TABLE.without_vjp("ai.onnx.ml.TreeEnsembleClassifier", traits=Trait.TAKES_NAN | Trait.CLASSIFIES)
TABLE.without_vjp("ai.onnx.ml.LinearClassifier", "ai.onnx.ml.SVMClassifier", traits=Trait.CLASSIFIES)
