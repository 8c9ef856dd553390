"""Runners kept in a folder: what a method's program says of itself, and its graphs as ONNX Runtime has rewritten them.

They hold weights in the layout that suits one kind of processor, whose features are part of an entry's name. What runs
on other providers than the CPU is not kept, nor are lean runners, whose weights have no layout of their own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, astuple
from functools import cache
from pathlib import Path
from typing import Any

from onnxplain.errors import ModelError
from onnxplain.execution.runner import Runner, Setting
from onnxplain.programs.program import Names, Program
from onnxplain.questions.question import Question, Slice
from onnxplain.runtime.providers import CPU
from onnxplain.runtime.session import Session
from onnxplain.storage import entries
from onnxplain.storage.digests import NoDigestError, digest
from onnxplain.storage.reader import Source, read_optimized, to_graph
from onnxplain.storage.writer import to_proto

_INTERFACES = ("graph", "copied")
_MAKE = ("vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU variant", "CPU part", "CPU revision")
_FEATURES = ("flags", "Features")  # of x86-64 and of ARM


def entry(folder: Path, setting: Setting, *depends: Any) -> Path | None:
    """Where a runner is kept; None if it cannot be.

    Parameters
    ----------
    depends
        All that the program and the canonical graph depend on.
    """
    if setting.choice.names != [CPU] or not _processor():
        return None
    try:
        name = digest(_processor(), setting.choice.providers, setting.memory, depends)
    except NoDigestError:
        return None
    return folder / f"{name}{entries.ENDING}"


def load(path: Path, compiled: Callable[[], Program], question: Question, setting: Setting) -> Runner:
    """What ``Runner.load(compiled(), setting)`` makes, or has made before; ``compiled()`` answers the question."""
    with tempfile.TemporaryDirectory(prefix="onnxplain-") as scratch:
        return entries.kept(
            path,
            lambda: _read(path, compiled, question, setting),
            lambda: _make(compiled, setting, Path(scratch)),
            lambda runner: _write(path, setting, Path(scratch), runner),
        )


def _make(compiled: Callable[[], Program], setting: Setting, scratch: Path) -> Runner:
    program = compiled()
    try:
        return Runner.load(program, setting, scratch)
    except ModelError:  # perhaps ONNX Runtime cannot save what it can run
        return Runner.load(program, setting)


def _write(path: Path, setting: Setting, scratch: Path, runner: Runner) -> None:
    if runner.lean:
        return
    program, parts = runner.program, {"front": runner.front, "main": runner.main, "back": runner.back}
    chunks = {name: part.chunk for name, part in parts.items() if part}
    models = {name: read_optimized(scratch / name) for name in chunks}
    for name in _INTERFACES:
        if graph := getattr(program, name):
            models[name] = Source(to_proto(graph.replace(nodes=(), constants={}, values={})), {}, None)
    note = {"names": asdict(program.names), "moved": [astuple(part) for part in program.moved], "chunks": chunks}
    entries.write(path, note, models, setting.graph.constants)


def _read(path: Path, compiled: Callable[[], Program], question: Question, setting: Setting) -> Runner:
    note, models = entries.read(path, setting.graph.constants)
    moved = tuple(Slice(name, tuple(tensors), axis) for name, tensors, axis in note["moved"])
    graph, copied = (to_graph(models.pop(name).proto) if name in models else None for name in _INTERFACES)
    assert graph is not None
    names = Names(**note["names"])
    program = Program(graph=graph, question=question, names=names, moved=moved, copied=copied)
    sessions = {name: (Session(model, setting.choice), note["chunks"][name]) for name, model in models.items()}
    return Runner.of(program, sessions, setting, compiled)


@cache
def _processor() -> list[str]:
    """What ONNX Runtime chooses kernels and layouts by, of each processor; empty where nobody tells."""
    try:
        lines = [line.split(":") for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    except OSError:
        return []
    told = [(name.strip(), value.strip()) for name, value, *_ in lines]
    known = any(name in _FEATURES for name, _ in told)
    return [f"{name}: {value}" for name, value in told if name in (*_MAKE, *_FEATURES)] if known else []
