"""The tables that say how distributions are compiled, run and exported: complete, and all that a new one needs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.distributions import (
    AveragedOver,
    Distribution,
    Line,
    LineIncrements,
    Lines,
    Noise,
    Point,
    Quadrature,
    References,
    Root,
    row_of,
)
from onnxplain.distributions.lines import QUADRATURES
from onnxplain.distributions.perturbation.lime import SURROGATES, Surrogate
from onnxplain.errors import OptionError
from onnxplain.execution import LOOPS, Answer, Runner
from onnxplain.execution.point import explain_point
from onnxplain.export import WRITERS, Specification
from onnxplain.export.specification import finished
from onnxplain.graph.ir import Graph
from onnxplain.methods.method import Method
from onnxplain.programs.compile import COMPILERS
from tests.export.test_explainer import bare
from tests.models import IMAGES, MLP, Array


def subclasses(kind: type[Distribution]) -> Iterator[type[Distribution]]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


CONCRETE = sorted(
    {
        kind
        for kind in subclasses(Distribution)
        if is_dataclass(kind) and not inspect.isabstract(kind) and kind.__module__.startswith("onnxplain.")
    },
    key=lambda kind: kind.__name__,
)
ARGUMENTS: dict[type[Distribution], tuple[Any, ...]] = {Root: ("segment",)}


def has_row(table: Mapping[type[Distribution], Any], kind: type[Distribution]) -> bool:
    return any(base in table for base in kind.__mro__)


def test_there_are_distributions() -> None:
    names = {kind.__name__ for kind in CONCRETE}
    assert names >= {"Point", "References", "Line", "Root", "Noise", "Lines", "LineIncrements", "Windows", "Lime"}


@pytest.mark.parametrize("kind", CONCRETE)
def test_every_distribution_is_compiled_run_and_exported_or_refused(kind: Any) -> None:
    assert has_row(COMPILERS, kind)
    assert has_row(LOOPS, kind)
    if not has_row(WRITERS, kind):
        with pytest.raises(OptionError, match=r"^a_method cannot be exported: "):
            kind(*ARGUMENTS.get(kind, ())).check_export("a_method")


@pytest.mark.parametrize("table", [LOOPS, WRITERS, COMPILERS], ids=["loops", "writers", "compilers"])
def test_no_row_is_of_no_use(table: Mapping[type[Distribution], Any]) -> None:
    for kind in table:
        assert any(issubclass(concrete, kind) for concrete in CONCRETE)
    assert Distribution not in {*LOOPS, *WRITERS}  # or a new distribution without rows would be taken for another


def test_a_row_holds_for_subclasses() -> None:
    class Longer(Line):
        pass

    table = {Distribution: 1, Line: 2}
    assert [row_of(table, d) for d in (Point(), Line(), Longer())] == [1, 2, 2]
    with pytest.raises(NotImplementedError, match="no row for Point"):
        row_of({Line: 2}, Point())


def test_tables_of_options_are_complete() -> None:
    assert set(QUADRATURES) == set(get_args(Quadrature))
    assert set(SURROGATES) == set(get_args(Surrogate))
    with pytest.raises(OptionError, match=r"there is no moment 'median'\n.*Known: mean, square, variance"):
        AveragedOver(Noise(), "median")  # type: ignore[arg-type]


def test_increments_are_those_of_one_line_in_order() -> None:
    for bad in ({"references": References(baselines=np.zeros((2, 6)))}, {"samples": 4}):
        Lines(**bad)
        with pytest.raises(OptionError, match="in order along one line"):
            LineIncrements(**bad)


# A new distribution: a dataclass, and its rows.


@dataclass(frozen=True)
class Shifted(Distribution):
    """The input plus a number."""

    at_point: ClassVar[bool] = True
    shift: float


def explain_shifted(
    runner: Runner, method: Method, shifted: Shifted, feeds: Mapping[str, Array], target: Array, progress: Any
) -> Answer:
    moved = {part.name: feeds[part.name] + np.float32(shifted.shift) for part in runner.program.slices}
    return explain_point(runner, method, shifted, {**feeds, **moved}, target, progress)


def write_shifted(spec: Specification, shifted: Shifted) -> Graph:
    inside, names = spec.inside(), spec.program.names.attributions
    points = {name: inside.emitter.var(name) + shifted.shift for name in names}
    return finished(inside, dict(zip(names, inside(inside.emitter, points, list(names.values())), strict=True)))


def shifted_gradient() -> Method:
    return replace(ox.METHODS["gradient"](), distribution=Shifted(0.25))


@pytest.mark.parametrize("tiny", [MLP, IMAGES])
def test_a_new_distribution_is_a_dataclass_and_its_rows(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ox.METHODS, "shifted_gradient", replace(ox.METHODS["gradient"], build=shifted_gradient))
    proto, x = tiny.proto(), tiny.x(3)
    with pytest.raises(NotImplementedError, match="no row for Shifted"):
        ox.explain(proto, x, "shifted_gradient", target=1)
    monkeypatch.setitem(LOOPS, Shifted, explain_shifted)
    monkeypatch.setitem(WRITERS, Shifted, write_shifted)
    explainer = ox.Explainer(proto, "shifted_gradient")
    expected = ox.explain(proto, x + np.float32(0.25), target=1)
    assert abs(expected.values - ox.explain(proto, x, target=1).values).max() > 0.01
    np.testing.assert_array_equal(explainer(x, target=1).values, expected.values)
    explainer.export(tmp_path / "shifted.onnx", target=1)
    found = bare(tmp_path / "shifted.onnx", {"x": x})["attribution"]
    np.testing.assert_allclose(found, expected.values, rtol=1e-5, atol=1e-6)
