from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import pytest

from onnxplain.graph.emit import Emitter
from onnxplain.methods import readouts
from tests.reference import rng, run_ort

CT, X, BASELINE = rng().normal(size=(3, 2, 4)).astype(np.float32)

EXPECTED = {
    "plain": CT,
    "absolute": np.abs(CT),
    "squared": CT**2,
    "times_input": X * CT,
    "times_delta": (X - BASELINE) * CT,
}


def test_every_readout_is_tested() -> None:
    assert {n for n, f in inspect.getmembers(readouts, inspect.isfunction)} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_readouts_take_arrays_and_vars(name: str) -> None:
    readout: Callable[..., object] = getattr(readouts, name)
    np.testing.assert_array_equal(readout(CT, X, BASELINE), EXPECTED[name])
    emitter = Emitter()
    inputs = [emitter.input(n, "float32", ("n", 4)) for n in ("ct", "x", "baseline")]
    graph = emitter.graph(inputs, {"result": readout(*inputs)})
    feeds = {"ct": CT, "x": X, "baseline": BASELINE}
    np.testing.assert_allclose(run_ort(graph, feeds)["result"], EXPECTED[name], rtol=1e-6)
