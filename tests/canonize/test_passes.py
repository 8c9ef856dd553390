from __future__ import annotations

from collections import Counter

from onnxplain.canonize.passes import PASSES, Property


def test_earlier_passes_ensure_what_a_pass_requires():
    ensured: set[Property] = set()
    for step in PASSES:
        assert ensured.issuperset(step.requires), step.run.__name__
        ensured.update(step.ensures)


def test_one_pass_ensures_each_property():
    assert Counter(p for step in PASSES for p in step.ensures) == Counter(Property)
