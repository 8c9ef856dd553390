"""Values that are read in parts: what their cotangents are, and how they are written."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.backward.test_walk import differences, gradients, graph_of
from tests.reference import gradient_graph, relative_error, rng

X = rng(3).normal(size=(2, 6)).astype(np.float32)
NUMBERS = {f"n{k}": np.array([k]) for k in range(7)}
INDICES = {f"i{k}": np.array(k) for k in range(6)}


def slices(*places: tuple[int, int]) -> str:
    """The sines of some slices, side by side."""
    read = [f"p{k} = Slice(x, n{a}, n{b}, n1) q{k} = Sin(p{k})" for k, (a, b) in enumerate(places)]
    return f"{' '.join(read)} y = Concat<axis=1>({', '.join(f'q{k}' for k in range(len(places)))})"


# What is read -> the operators of the gradient that move or add something.
CASES = {
    "all of it": (slices((0, 2), (2, 6)), {"Concat": 1}),
    "in another order": (slices((2, 4), (4, 6), (0, 2)), {"Concat": 1}),
    "the middle": (slices((1, 2), (2, 4)), {"Concat": 1, "Pad": 1}),
    "with a gap": (slices((0, 1), (3, 6)), {"Pad": 2, "Add": 1}),
    "with an overlap": (slices((0, 4), (2, 6)), {"Pad": 2, "Add": 1}),
    "twice": (slices((0, 3), (3, 6), (0, 3), (3, 6)), {"Concat": 2, "Add": 1}),
    "some and all": (slices((0, 3), (3, 6), (0, 6)), {"Concat": 1, "Add": 1}),
    "step by step": (
        " ".join(f"e{k} = Gather<axis=1>(x, i{k}) g{k} = Sin(e{k})" for k in range(6))
        + " s = Sum(g0, g1, g2, g3, g4, g5) y = Unsqueeze(s, n1)",
        {"Concat": 1},
    ),
    "besides": (
        "c = Cos(x) t = Sin(x) " + slices((0, 3), (3, 6)) + " z = Concat<axis=1>(y, c, t)",
        {"Concat": 1, "Add": 2},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_are_joined(case: str) -> None:
    body, expected = CASES[case]
    last = body.rpartition(" = ")[0].rpartition(" ")[2]
    text = f"m (float[N,6] x) => (float[N,K] {last}) {{ {body} }}"
    numbers = {name: array for name, array in (NUMBERS | INDICES).items() if name in body}
    graph = graph_of(text, **numbers)
    (found,) = gradients(graph, ["x"], {"x": X}, [last]).values()
    assert relative_error(found, differences(text, {"x": X}, [last], **numbers)["x"]) < 1e-5
    written = gradient_graph(graph, {last: X}, ["x"])
    counts = Counter(node.op for node in written.nodes if graph.producer.keys().isdisjoint(node.outputs))
    assert {op: counts[op] for op in ("Concat", "Pad", "Add") if counts[op]} == expected
