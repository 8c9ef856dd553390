"""Work from a file to a program grows linearly with the nodes: counted in function calls, not in seconds."""

from __future__ import annotations

import cProfile
import pstats

import pytest

import onnxplain as ox
from onnxplain.canonize import canonize
from onnxplain.storage.reader import read
from tools.scaling import chain


def calls(nodes: int, method: str) -> int:
    data = chain(nodes).SerializeToString()
    with cProfile.Profile() as profile:
        canonize(read(data))
        ox.Explainer(data, method).program()
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]  # the stubs lack it


@pytest.mark.parametrize("method", ["gradient", "lrp", "deeplift"])
def test_work_grows_linearly(method: str) -> None:
    calls(120, method)  # fills caches
    small, middle, large = (calls(nodes, method) for nodes in (240, 480, 960))
    assert large - middle < 1.1 * 2 * (middle - small)  # four times, if it were quadratic
