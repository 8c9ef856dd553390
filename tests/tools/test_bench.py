"""tools/bench: its arithmetic, and that failures become rows. What it measures is checked by nothing but itself."""

from __future__ import annotations

import argparse
import math

import numpy as np
import pytest

from onnxplain import METHODS
from tools.bench import __main__ as bench
from tools.bench import report, worker
from tools.bench.families import FAMILIES
from tools.bench.nets import NETS

DRIFT = np.array([1.0, 3.0, 0.5, 1.5, 1.0])  # of a machine that slows down and recovers, as long as a round takes


def measured(**seconds):
    times = {name: list(value * DRIFT) for name, value in seconds.items()}
    return {"method": "integrated_gradients", "seconds": times, "refusals": {}, "similarity": {"captum": 1.0}}


def test_ratios_are_of_one_round_and_per_point():
    row = report.row_of("resnet50", 1, measured(forward=0.1, ours=6.4, captum=19.2))  # 32 steps
    assert row["passes"]["ours"] == pytest.approx([2.0] * 3)
    assert row["ratios"] == {"captum": pytest.approx([3.0] * 3)}
    text = report.summary({"machine": "m", "rows": [row], "cold": [], "sizes": {}})
    assert "| `integrated_gradients`, a step | 2.0 (3.0x) |" in text
    assert "over all cells that it can run: 3.0 times; 3.0 times if ours took nothing but products" in text
    slow = {**row, "bound": 1.0}
    text = report.summary({"machine": "m", "rows": [row, slow], "cold": [], "sizes": {}})
    assert "3.0 times; 4.2 times if" in text  # the geometric mean of 3 and 6
    assert report.far_from_bound([row]) == []
    assert report.far_from_bound([{**row, "bound": 1.0}]) == ["2.00 x bound: ResNet-50, batch 1, integrated_gradients"]


def test_a_process_that_dies_is_a_row_that_says_so(monkeypatch):
    options = {"methods": ["gradient", "deeplift"], "repeat": 1, "budget": 1.0, "clock": "wall", "threads": 1}
    namespace = argparse.Namespace(**options, provider="cpu", models_dir="/nowhere", memory=None)
    first, second = bench.timed(namespace, "lstm", 1)
    assert [first["method"], second["method"]] == ["gradient", "deeplift"]
    assert "refuses: the process ended with 1" in first["refusals"]["ours"]
    assert math.isnan(first["forward"])
    assert any("refuses" in cell for line in report.cells(first) for cell in line)


def test_rounds_interleave():
    turns = []
    calls = {name: (lambda name=name: turns.append(name)) for name in ("forward", "ours")}
    job = worker.Job("time", "lstm", 1, [], "", 3, 60.0, "wall", 1, "cpu", "", None)
    found = worker.times(calls, dict.fromkeys(calls, 1.0), job)
    assert turns == ["forward", "ours"] * 3
    assert {name: len(times) for name, times in found.items()} == {"forward": 3, "ours": 3}


def test_similarity_of_tokens_and_channels():
    ours = np.arange(1.0, 7.0).reshape(2, 3)
    assert worker.similarity(ours, np.stack([ours, ours], -1)) == pytest.approx(1.0)
    assert worker.similarity(ours, -ours) == pytest.approx(-1.0)


def test_families_are_methods_and_peers():
    peers = pytest.importorskip("tools.bench.peers")
    for family in FAMILIES.values():
        METHODS[family.method](**family.options_at(8))
        assert any(family.applies(net) for net in NETS.values())
        for function, _ in family.peers.values():
            assert callable(getattr(peers, function))
