"""Questions: names, defaults, batch axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxplain.errors import OptionError, UnsupportedModelError
from onnxplain.graph.axes import rows
from onnxplain.graph.ir import Graph, Value
from onnxplain.questions.question import Question, Slice, ask
from tests.models import MLP, SIGMOID, SOFTMAX, TOKENS, TWO_INPUTS, weights
from tests.programs.test_assembly import graph_of, several


def test_defaults() -> None:
    question = ask(several())
    assert (question.output, question.explained, question.tensors) == ("y", "y", ("x",))
    assert ask(graph_of(TWO_INPUTS)).tensors == ("a", "b")


def test_the_value_before_softmax_and_sigmoid_is_explained() -> None:
    for tiny, name in ((SOFTMAX, "logits"), (SIGMOID, "logit")):
        assert ask(graph_of(tiny)).explained == name
        assert ask(graph_of(tiny), probability=True).explained == "y"
        assert ask(graph_of(tiny)).output == "y"


def test_names() -> None:
    assert ask(several(), output="h").explained == "h"
    assert ask(graph_of(TWO_INPUTS), wrt="b").tensors == ("b",)
    assert ask(graph_of(TWO_INPUTS), wrt=["b", "a", "b"]).tensors == ("b", "a")
    assert ask(graph_of(MLP), at="h").tensors == ("h",)
    assert ask(graph_of(TOKENS), at="embedded").tensors == ("embedded",)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"output": "logits"}, r"no output 'logits'\nKnown: h, y, z"),
    ({"output": "z"}, "output 'z' holds int64, and a score with a gradient needs floats\nMethods that need forward"),
    ({"output": 3}, "no output 3"),
    ({"wrt": "lable"}, r"no input 'lable'\nDid you mean 'label'"),
    ({"wrt": ["x", "label"]}, "input 'label' holds int64, and no floating-point tensor is made of it"),
    ({"wrt": "scale"}, "input 'scale' has no batch axis"),
    ({"wrt": "shift"}, "input 'shift' has no batch axis"),
    ({"wrt": []}, "names no input"),
    ({"wrt": [3]}, "no input 3"),
    ({"at": "hh"}, r"no floating-point tensor 'hh'\nDid you mean 'h'"),
    ({"at": "something_else"}, r"no floating-point tensor 'something_else'\nThe model's 'tensors' lists them"),
    ({"at": "z"}, "no floating-point tensor 'z'"),
    ({"at": "shift"}, "the tensor has no batch axis: shift"),
    ({"at": "h", "wrt": "x"}, "not both"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[m for _, m in BAD])
def test_wrong_names(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ask(several(), **options)


def value(*shape: Any, name: str = "x") -> Value:
    return Value(name, np.dtype(np.float32), shape)


def reshaped(inputs: str, *shape: int, rows: str = "N") -> Graph:
    text = f"m (float[{inputs},6] x) => (float[{rows},6] y) {{ h = Exp(x)  y = Reshape(h, shape) }}"
    return graph_of(text, shape=np.array(shape))


def test_outputs_without_a_row_for_each_sample() -> None:
    for graph in (reshaped("N", -1, 2, rows="A"), reshaped("N", 12, -1, rows="A"), reshaped("2", 3, 4, rows="A")):
        assert ask(graph).axis is None
    assert rows(reshaped("N", 1, -1, rows="A").value("y")) == 1
    assert ask(reshaped("N", 1, -1, rows="A")).axis == 0  # holds for single samples
    assert ask(reshaped("1", 1, 6, rows="A")).axis == 0
    bound = "m (float[1,6] x) => (float[A,B] y) { h = Softmax<axis=0>(x)  y = Reshape(h, shape) }"
    assert ask(graph_of(bound, shape=np.array([6, 1]))).axis == 1  # steps in front, as recurrent layers have them


def test_rows_that_are_counted_at_run_time_are_no_samples_of_a_model_for_one() -> None:
    text = "m (float[S,6] x) => (float[A,B] y) { i = NonZero(x)  t = Transpose(i)  c = Cast<to=1>(t)  y = Mul(c, c) }"
    assert ask(graph_of(text.replace("S", "1")), walks=False).axis is None
    assert ask(graph_of(text.replace("S", "N")), walks=False).axis == 0  # they may be


def test_models_with_nothing_to_explain() -> None:
    labels = graph_of("m (float[N,3] x) => (int64[N] y) { y = ArgMax<axis=1, keepdims=0>(x) }")
    with pytest.raises(UnsupportedModelError, match=r"no floating-point output to explain\nMethods that need forward"):
        ask(labels)
    assert ask(labels, walks=False) == Question("y", "y", 0, (Slice("x", ("x",)),))
    counted = graph_of("m (int64[N,3] x) => (float[N,3] y) { s = Shape(x)  y = RandomUniformLike<dtype=1>(x) }")
    with pytest.raises(UnsupportedModelError, match=r"no input with a batch axis that holds, or becomes, .*\n.*at="):
        ask(counted)
    assert ask(counted, walks=False).slices == (Slice("x", ("x",)),)


def test_tokens_are_explained_where_they_are_looked_up() -> None:
    assert ask(graph_of(TOKENS)).slices == (Slice("x", ("embedded",)),)
    assert ask(graph_of(TOKENS), walks=False).slices == (Slice("x", ("x",)),)


def test_masks_are_left_alone_unless_named() -> None:
    text = """m (int64[N,L] ids, int64[N,L] mask, float[N,1] scale) => (float[N,A] y) {
        e = Gather(table, ids)  m = Cast<to=1>(mask)  k = Unsqueeze(m, axis)  h = Mul(e, k)  s = ReduceSum(h, one)
        r = Squeeze(s, one)  y = Mul(r, scale)
    }"""
    graph = graph_of(text, **weights(table=(9, 4)), axis=np.array([2]), one=np.array([1]))
    assert [part.name for part in ask(graph).slices] == ["ids", "scale"]
    assert ask(graph, wrt="mask").tensors == ("m",)
    assert ask(graph, wrt="mask", walks=False).tensors == ("mask",)


def test_numbers_are_explained_where_they_are_converted() -> None:
    graph = graph_of("m (uint8[N,4] x) => (float[N,4] y) { f = Cast<to=1>(x)  y = Exp(f) }")
    assert ask(graph).slices == (Slice("x", ("f",)),)
