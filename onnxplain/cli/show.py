"""Output of the command line: tables on a terminal, JSON for scripts, errors as a line and a hint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from onnxplain.cli.drawing import Drawing
from onnxplain.cli.inputs import PreparedInput
from onnxplain.concepts import Carried
from onnxplain.concepts.units import Sign
from onnxplain.graph.ir import Value
from onnxplain.imaging.preprocessing import Note, Preprocessing
from onnxplain.programs.program import Assignment

PIPE_WIDTH = 160  # characters per line where the output is a pipe, which has no width of its own


def _console(stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def print_json(data: Any) -> None:
    """Print data as JSON; arrays become lists."""
    click.echo(json.dumps(data, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def _say(label: str, text: str, style: str = "bold") -> None:
    words = Text(f"{label}: ", style=style) + Text(" ".join(text.split()), style="")
    _console(stderr=True).print(words, soft_wrap=True)


def error(message: str, hint: str) -> None:
    """Print an error as one line, and the hint, if any, as another, on standard error."""
    _say("error", message, "bold red")
    if hint:
        _say("hint", hint)


def warning(message: str) -> None:
    """Print a warning on standard error."""
    _say("warning", message, "bold yellow")


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar on a terminal, and nothing elsewhere; the bar pulses until the total is known."""
    console = _console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{label}: preparing", total=None)
        yield lambda done, total: bar.update(task, description=label, completed=done, total=total)


def _explained(target: Any, names: Sequence[str] | None, compared: bool) -> str:
    """Describe the explained class, or, if two are ``compared``, one class rather than the other."""
    classes = target if compared else [target]
    return "class " + " rather than ".join(f"{c} ({label(c, names)})" if label(c, names) else str(c) for c in classes)


def label(target: Any, names: Sequence[str] | None) -> str | None:
    """Name of a class; None if it has none."""
    return names[target] if names and isinstance(target, int) and target < len(names) else None


def result(
    answer: ox.Attribution,
    *,
    out: Path,
    sample: int,
    classes: Sequence[str] | None,
    explainer: ox.Explainer,
    prepared: PreparedInput,
    report: Sequence[Assignment] | None,
    drawn: Drawing,
    as_json: bool,
    quantity: str | None,
    compared: bool,
) -> None:
    """Print what was explained, where it was written, and the features with the largest attributions.

    Parameters
    ----------
    answer
        The attribution.
    out
        The file that was written.
    sample
        Number of the sample that the picture and the table of features show.
    classes
        Names of the classes, if known.
    explainer
        What explained: its providers are printed.
    prepared
        The model's input.
    report
        The rule of each node; None: it is not printed.
    drawn
        Names of the input's values, if they have any.
    as_json
        Print JSON instead.
    quantity
        What was explained; None: one class, or the difference of two.
    compared
        Whether the score is the difference of two classes.
    """
    targets = answer.target.tolist()
    listed = len(answer.names) == 1 and answer.values.ndim == 2
    if as_json:
        how = prepared.preprocessing
        print_json(
            {
                "file": str(out),
                "method": answer.method,
                "target": quantity or targets,
                "label": [label(target, classes) for target in targets],
                "score": answer.score,
                "residual": answer.residual,
                "shape": {name: answer[name].values.shape for name in answer.names},
                "preprocessing": how.to_note() if how else None,
                "provider": explainer.provider,
                "provider_reason": str(explainer.providers),
            }
            | ({} if report is None else {"report": _lines(report)})
            | ({"values": answer.values} if listed else {})
            | ({} if drawn.names is None else {"names": drawn.names})
        )
        return
    if report is not None:
        rules(report, answer.method, as_json=False)
    several = len(targets) > 1
    for position, target in enumerate(targets):
        gap = "" if answer.residual is None else f", residual {answer.residual[position]:+.3g}"
        prefix = f"sample {position}: " if several else ""
        click.echo(
            f"{prefix}{quantity or _explained(target, classes, compared)}, score {answer.score[position]:.4g}{gap}"
        )
    shown = f" of sample {sample}" if several and out.suffix not in (".npy", ".npz") else ""
    click.echo(f"{out}: {answer.method}{shown}, on {explainer.provider}")
    if listed and drawn.labels:
        _features(answer, sample, drawn)


def _features(answer: ox.Attribution, sample: int, drawn: Drawing) -> None:
    """Print the tokens or columns with the largest attributions; on a terminal, the text in colours, too."""
    console = _console()
    if drawn.is_text and drawn.names and console.is_terminal:
        console.print(Text.from_ansi(answer.text(drawn.names, sample)), soft_wrap=True)
    rows = [(name, f"{value:+.4g}") for name, value in answer.top(drawn.labels, sample=sample)]
    print_table(("token" if drawn.is_text else "feature", "attribution"), rows)


def converted(explainer: ox.Model, out: Path, method: str, as_json: bool) -> None:
    """Print the inputs and outputs of a stand-alone explainer."""
    graph = explainer.source.proto.graph
    size, outputs = out.stat().st_size, [v.name for v in graph.output]
    if as_json:
        inputs = [_described(v) for v in explainer.inputs]
        print_json({"file": str(out), "bytes": size, "method": method, "inputs": inputs, "outputs": outputs})
        return
    click.echo(f"{out}: {method}, {size / 1e6:.3g} MB")
    for value in explainer.inputs:
        click.echo(f"  input  {value}")
    click.echo(f"  outputs {', '.join(outputs)}")


def influence(
    result: ox.Influence, explained: str, top: int, sign: Sign, carried: Carried | None, as_json: bool
) -> None:
    """Print the top units of a tensor, and the share of the score that they carry."""
    units = result.top(top, sign)
    if as_json:
        known = {"at": result.at, "method": result.method, "target": explained, "samples": result.samples}
        rows = [{"index": u.index, "influence": u.influence, "error": _finite(u.error)} for u in units]
        print_json(
            {**known, "units": result.units.size, "top": rows}
            | ({} if carried is None else {"carried": _columns(carried)})
        )
        return
    click.echo(f"{explained}: {result.method} at {result.at}, mean of {result.samples} samples")
    click.echo(f"the strongest of {result.units.size} units:")
    for unit in units:
        click.echo(f"  {unit}")
    if carried is not None:
        click.echo(str(carried))


def _columns(carried: Carried) -> dict[str, Any]:
    columns = {name: getattr(carried, name) for name in ("score", "error", "share", "share_error")}
    return {"k": carried.ks} | {name: [_finite(v) for v in values] for name, values in columns.items()}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def rules(report: Sequence[Assignment], method: str, as_json: bool) -> None:
    """Print the kind and rule of each node; after a run also the sums, over all samples, received and passed on."""
    lines = _lines(report)
    if as_json:
        print_json(lines)
    elif lines:
        columns = tuple(lines[0])
        print_table(
            columns, [[_cell(line[c]) for c in columns] for line in lines], title=f"{method}: from output to input"
        )
    else:
        click.echo(f"{method} runs the model forward only: no rules.")


def _lines(report: Sequence[Assignment]) -> list[dict[str, Any]]:
    ran = any(line.arrived is not None for line in report)
    return [
        {
            "operator": line.node.op,
            "node": line.node.name or line.node.outputs[0],
            "kind": line.kind.name or "",
            "rule": repr(line.rule),
        }
        | ({"arrived": _sum(line.arrived), "given": _sum(line.given)} if ran else {})
        for line in report
    ]


def _sum(values: Any) -> float | None:
    return None if values is None else float(values.sum())


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def tensors(values: Sequence[Value], as_json: bool) -> None:
    """Print the internal tensors that can get the attribution."""
    if as_json:
        print_json([_described(v) for v in values])
        return
    print_table(("tensor", "type", "shape"), [(v.name, str(v.dtype), _shape(v)) for v in values])


def model(
    loaded: ox.Model, note: Note | None, how: Preprocessing | None, verdicts: Mapping[str, str], as_json: bool
) -> None:
    """Print a model's inputs and outputs, its preprocessing, and which methods work on it."""
    canonical = loaded.canonical()
    if as_json:
        print_json(
            {
                "inputs": [_described(v) for v in loaded.inputs],
                "outputs": [_described(v) for v in loaded.outputs],
                "nodes": len(canonical.graph.nodes),
                "fixed_batch": canonical.fixed_batch,
                "changes": canonical.changes,
                "preprocessing": how.to_note() if how else None,
                "labels": str(note.labels) if note and note.labels else None,
                "methods": {name: why or "works" for name, why in verdicts.items()},
            }
        )
        return
    click.echo(str(loaded))
    if note and how:
        height, width = how.size or ("?", "?")
        formula = f"(pixel * {how.scale:.6g} - {how.mean}) / {how.std}"
        click.echo(f"  photos {height} x {width} {how.color}, {how.resize}: {formula}")
        click.echo(f"         from {note.source}; labels: {note.labels or 'none'}")
    reasons: dict[str, list[str]] = {}
    for name, why in verdicts.items():
        reasons.setdefault(why, []).append(name)
    rows = [(", ".join(names), "no" if why else "yes", why) for why, names in sorted(reasons.items())]
    print_table(("methods", "work", "reason"), rows)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], **style: Any) -> None:
    """Print a table; ``style``: keyword arguments of rich's Table."""
    table = Table(*columns, **style)
    for row in rows:
        table.add_row(*map(Text, row))
    _console().print(table)


def _described(value: Value) -> dict[str, Any]:
    return {"name": value.name, "dtype": str(value.dtype), "shape": value.shape}


def _shape(value: Value) -> str:
    return " x ".join("?" if d is None else str(d) for d in value.shape) if value.shape is not None else "?"
