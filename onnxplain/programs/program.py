"""`Program`: a graph that explains at one point, the names of its inputs and outputs, and the graphs around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxplain.graph.ir import Graph, Node
from onnxplain.ops import Kind
from onnxplain.questions.question import Question, Slice, tensors_of
from onnxplain.rules.base import Rule


@dataclass(frozen=True, eq=False)
class Assignment:
    """One line of the report: a node, its kind, its rule.

    Attributes
    ----------
    node
        A node on the path from the output to what is explained.
    kind
        The node's kind, by which composites choose rules.
    rule
        The rule that the composite chose.
    arrived, given : ndarray of shape (N,), or None
        The sum per sample of the relevance at the node's outputs, and of the relevance that the node passes on to its
        inputs: relevance for ``lrp``, contributions for ``deeplift``, the method's readout for others. None before a
        run, and for nodes in the bodies of control flow.
    """

    node: Node
    kind: Kind
    rule: Rule
    arrived: np.ndarray[Any, Any] | None = None
    given: np.ndarray[Any, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Names:
    """Names of a program's inputs and outputs.

    Attributes
    ----------
    target, weights
        The inputs that choose what is explained (see `onnxplain.questions.quantities.target_inputs`); ``weights`` is
        None unless the question is a weighted sum.
    score, resolved
        The outputs with the score and with the target, in which `PREDICTED` is replaced by the predicted class.
    attributions
        Name of a slice -> name of its attribution: an output of the program's graph for methods that look at one point,
        of the graph ``back`` for others.
    cotangents
        For methods that average cotangents over several points: name of a tensor -> the output with its cotangent, or
        with the readout of the cotangent where the model's inputs move.
    baselines
        For methods that compare the input with a baseline that is not built in: name of a slice -> the input for it.
    baseline_score
        The output with the score at the baseline; None for other methods, or where that score is not constant.
    values
        For methods that multiply by a tensor's change from point to point: name of the tensor -> the output with it.
    trace
        First output of a node -> the outputs with the relevance that arrives at the node, and that it passes on (see
        `onnxplain.programs.trace.Trace`); empty unless the program was compiled with ``traced``.
    """

    target: str
    score: str
    resolved: str
    attributions: Mapping[str, str]
    weights: str | None = None
    cotangents: Mapping[str, str] = field(default_factory=dict)
    baselines: Mapping[str, str] = field(default_factory=dict)
    baseline_score: str | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    trace: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A graph that explains, at one point.

    Attributes
    ----------
    graph
        Inputs: the model's, the target's, and, for methods that look at several points, the tensors that move, which
        are cut off from the model's inputs. Outputs: those in ``names``, and the explained tensor if it holds labels.
    question
        The question that it answers.
    names
        The names of its inputs and outputs.
    front
        Graph from the model's inputs to the internal tensors that move; None if only inputs move.
    back
        Graph from the attributions of tensors (inputs named as in ``names.cotangents``), and the model's inputs, to the
        attributions of the slices that these tensors stand for; None if all slices are tensors themselves.
    moved
        The slices that move from point to point, if not the question's.
    copied
        For methods that mask: ``graph`` preceded by nodes that build the masked copies from compact descriptions (see
        `onnxplain.distributions.masked_copies`).
    """

    graph: Graph
    question: Question
    names: Names
    front: Graph | None = None
    back: Graph | None = None
    moved: tuple[Slice, ...] = ()
    copied: Graph | None = None

    @property
    def slices(self) -> tuple[Slice, ...]:
        """The slices that move from point to point."""
        return self.moved or self.question.slices

    @property
    def points(self) -> tuple[str, ...]:
        """Names of the tensors that move."""
        return tensors_of(self.slices)
