"""Runners in a cache folder: the names and interface of a program, and its graphs as ONNX Runtime has optimized them.

Optimized graphs hold weights in the layout for one kind of processor, so its model and features are part of an entry's
name. Runners on other providers than the CPU are not kept; neither are lean runners, whose weights keep their layout.
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

_INTERFACES = ("graph", "copied")  # graphs of a program of which inputs and outputs are kept
_MAKE = ("vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU variant", "CPU part", "CPU revision")
_FEATURES = ("flags", "Features")  # on x86-64 and on ARM


def entry(folder: Path, setting: Setting, *depends: Any) -> Path | None:
    """File in which a runner is kept; None if it cannot be kept.

    Parameters
    ----------
    folder
        The cache folder.
    setting
        The conditions under which the program runs.
    depends
        Everything that the program and the canonical graph depend on.
    """
    if setting.choice.names != [CPU] or not _processor():
        return None
    try:
        name = digest(_processor(), setting.choice.providers, setting.memory, depends)
    except NoDigestError:
        return None
    return folder / f"{name}{entries.ENDING}"


def load(path: Path, compiled: Callable[[], Program], question: Question, setting: Setting) -> Runner:
    """Read the runner from the file ``path``; make and write it if there is no valid file.

    Parameters
    ----------
    path
        The file, see `entry`.
    compiled
        Compiles the program.
    question
        The question that the program answers.
    setting
        The conditions under which the program runs.
    """
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
    except ModelError:  # ONNX Runtime may be able to run a graph that it cannot save
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
    """Model and features of each processor, by which ONNX Runtime chooses kernels and layouts; empty if unavailable."""
    try:
        lines = [line.split(":") for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    except OSError:
        return []
    rows = [(name.strip(), value.strip()) for name, value, *_ in lines]
    known = any(name in _FEATURES for name, _ in rows)
    return [f"{name}: {value}" for name, value in rows if name in (*_MAKE, *_FEATURES)] if known else []
