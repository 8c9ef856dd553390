"""What the command line prints: tables on a terminal, JSON for scripts, errors as a line and a hint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import onnxplain as ox
from onnxplain.errors import OnnxplainError


def _console(stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = 160  # a pipe has no width; lines should not be cut for one
    return console


def line(text: str) -> None:
    """Print one line."""
    click.echo(text)


def dump(data: Any) -> None:
    """Print JSON."""
    click.echo(json.dumps(data, indent=2, default=lambda a: a.tolist() if isinstance(a, np.ndarray | np.generic) else str(a)))


def error(problem: OnnxplainError) -> None:
    """Print an error as one line and a hint, on standard error."""
    message = " ".join(problem.message.split())
    console = _console(stderr=True)
    console.print(Text("error: ", style="bold red") + Text(message, style=""), soft_wrap=True)
    if problem.hint:
        console.print(Text("hint: ", style="bold") + Text(problem.hint), soft_wrap=True)


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, nothing elsewhere."""
    console = _console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _named(target: Any, labels: list[str] | None) -> str:
    if isinstance(target, int) and labels and target < len(labels):
        return f"{target} ({labels[target]})"
    return str(target)


def result(answer: ox.Attribution, out: Path, labels: list[str] | None, explainer: ox.Explainer, as_json: bool) -> None:
    """Print what was explained and where it was written."""
    targets = answer.target.tolist()
    if as_json:
        dump(
            {
                "file": str(out),
                "method": answer.method,
                "target": targets,
                "label": [labels[t] if labels and isinstance(t, int) and t < len(labels) else None for t in targets],
                "score": answer.score,
                "residual": answer.residual,
                "provider": explainer.provider,
                "provider_reason": str(explainer.providers),
                "shape": {name: answer[name].values.shape for name in answer.names},
            }
        )
        return
    for sample, target in enumerate(targets):
        gap = "" if answer.residual is None else f", residual {answer.residual[sample]:+.3g}"
        line(f"class {_named(target, labels)}, score {answer.score[sample]:.4g}{gap}")
    line(f"{answer.method} written to {out}")


def rules(explainer: ox.Explainer, as_json: bool) -> None:
    """Print node -> kind -> rule."""
    assignments = explainer.report()
    rows = [(a.node.op, a.node.name or a.node.outputs[0], a.kind.name or "", repr(a.rule)) for a in assignments]
    if as_json:
        dump([dict(zip(("operator", "node", "kind", "rule"), row, strict=True)) for row in rows])
        return
    if not rows:
        line(f"{explainer.method.name} runs the model forward only: no rules.")
        return
    table = Table("operator", "node", "kind", "rule", title=f"{explainer.method.name}: from the output to the input")
    for row in rows:
        table.add_row(*map(Text, row))
    _console().print(table)


def model(loaded: ox.Model, verdicts: Mapping[str, str], as_json: bool) -> None:
    """Print a model's summary, and which methods work on it."""
    if as_json:
        canonical = loaded.canonical()
        dump(
            {
                "inputs": [_described(v) for v in loaded.inputs],
                "outputs": [_described(v) for v in loaded.outputs],
                "nodes": len(canonical.graph.nodes),
                "fixed_batch": canonical.fixed_batch,
                "changes": canonical.changes,
                "methods": {name: why or "works" for name, why in verdicts.items()},
            }
        )
        return
    line(str(loaded))
    table = Table("method", "works", "what is in the way")
    for name, why in verdicts.items():
        table.add_row(name, "no" if why else "yes", Text(why))
    _console().print(table)


def _described(value: Any) -> dict[str, Any]:
    return {"name": value.name, "dtype": str(value.dtype), "shape": value.shape}


def methods(table: Mapping[str, Mapping[str, Any]], as_json: bool) -> None:
    """Print the methods with their options."""
    from onnxplain.composites import COMPOSITES, RULES

    if as_json:
        dump({"methods": table, "lrp_rules": list(RULES), "lrp_composites": list(COMPOSITES)})
        return
    printed = Table("method", "what it computes", "options", show_lines=True)
    for name, entry in table.items():
        options = ", ".join(f"{k}={'-' if v is None else v}" for k, v in entry["options"].items())
        printed.add_row(name, Text(entry["summary"]), Text(options))
    _console().print(printed)
    line(f"lrp rules: {', '.join(RULES)}")
    line(f"lrp composites: {', '.join(COMPOSITES)}")
