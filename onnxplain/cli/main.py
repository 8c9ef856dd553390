"""The commands: explain, convert, inspect, methods."""

from __future__ import annotations

import inspect as signatures
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

import onnxplain as ox
from onnxplain import files, methods
from onnxplain.cli import inputs, show
from onnxplain.errors import OnnxplainError, OptionError

EPILOG = "Errors go to standard error as one line and a hint; exit status 1 for them, 2 for a wrong command line."


class Commands(click.Group):
    """A group that shows this package's errors as a line and a hint instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except OnnxplainError as error:
            show.error(error)
            ctx.exit(1)


@click.group(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ox.__version__, prog_name="onnxplain")
def main() -> None:
    """Explain any ONNX model: which parts of the input spoke for the answer?"""


def _parse(items: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE options of a method: JSON values, comma-separated numbers, .npy files, or plain text."""
    options: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise OptionError(f"-p takes KEY=VALUE, not {item!r}", "For example: -p steps=128")
        options[key.strip()] = _value(text.strip())
    return options


def _value(text: str) -> Any:
    if text.endswith(".npy"):
        return inputs.load_array(Path(text))
    try:
        value = json.loads(text)
        return tuple(value) if isinstance(value, list) else value
    except json.JSONDecodeError:
        pass
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        return text


def _target(text: str | None, labels: list[str] | None = None) -> int | tuple[int, ...] | None:
    """A target: a class number, an index "4,10,12", or a class name from the labels."""
    if text is None or text == "predicted":
        return None
    try:
        numbers = tuple(int(part) for part in text.split(","))
        return numbers[0] if len(numbers) == 1 else numbers
    except ValueError:
        pass
    matches = [i for i, label in enumerate(labels or []) if label.lower() == text.lower()]
    if not matches:
        hint = "Give a number, or --labels with a file that names the classes."
        raise ox.TargetError(f"there is no class called {text!r}", "" if labels else hint)
    return matches[0]


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _common(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every command that runs or writes a method."""
    options: list[Decorator] = [
        click.option("-m", "--method", default="lrp", show_default=True, help="Method; see 'onnxplain methods'."),
        click.option("-p", "--param", "params", multiple=True, metavar="KEY=VALUE", help="Option of the method; repeatable."),
        click.option("--target", help="Class number, index (4,10,12), or class name; default: the predicted class."),
        click.option("--output", help="Model output to explain; default: the first floating-point one."),
        click.option("--wrt", multiple=True, help="Input that gets the attribution; repeatable; default: all."),
        click.option("--at", help="Internal tensor that gets the attribution instead of an input."),
        click.option("--probability", is_flag=True, help="Explain the value after a final softmax, not before it."),
        click.option("--labels", type=click.Path(path_type=Path), help="Text file that names the classes, one a line."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _photo_options(function: Callable[..., Any]) -> Callable[..., Any]:
    options: list[Decorator] = [
        click.option("--preset", help="Known preprocessing: " + ", ".join(inputs.presets()) + "."),
        click.option("--mean", help="Mean to subtract: a number, or one per channel, 123.7,116.8,103.9."),
        click.option("--std", help="Standard deviation to divide by, likewise."),
        click.option("--scale", type=float, help="Factor on the pixels (0..255) before that."),
        click.option("--layout", type=click.Choice(["NCHW", "NHWC"]), help="Axes of the model's input."),
        click.option("--color", type=click.Choice(["RGB", "BGR", "GRAY"]), help="Order of the channels."),
        click.option("--size", help="Height and width, 224 or 224,224; default: from the model."),
        click.option("--resize", type=click.Choice(["stretch", "crop", "pad"]), help="How a photo is made to fit."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("input", type=click.Path(path_type=Path))
@_common
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Picture (.png, .jpg) or raw values (.npy, .npz).")
@_photo_options
@click.option("--provider", "providers", multiple=True, help="cpu, cuda, or an ONNX Runtime provider; repeatable.")
@click.option("--memory", default="1 GiB", show_default=True, help="Bound on the memory of one run's activations.")
@click.option("--plain", is_flag=True, help="Draw the heatmap alone, not over the photo.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def explain(
    model: Path,
    input: Path,
    method: str,
    params: tuple[str, ...],
    target: str | None,
    output: str | None,
    wrt: tuple[str, ...],
    at: str | None,
    probability: bool,
    labels: Path | None,
    out: Path | None,
    providers: tuple[str, ...],
    memory: str,
    plain: bool,
    as_json: bool,
    **photo: Any,
) -> None:
    """Explain what MODEL says about INPUT (a photo, .npy or .npz) and draw it.

    Photos are prepared as the model's preprocessing note says (MODEL.preprocessing.json next to it, or in its metadata), as a
    --preset says, or as --mean, --std, --scale ... say.
    """
    out = out or input.with_name(f"{input.stem}_{method}{'.png' if input.suffix not in ('.npy', '.npz') else '.npy'}")
    files.check_writable(out, {".png", ".jpg", ".jpeg", ".npy", ".npz"})
    loaded = ox.load(model)
    prepared = inputs.prepare(loaded, input, {k: v for k, v in photo.items() if v is not None})
    names = inputs.labels(labels, prepared.labels)
    options = {**prepared.bounds(method, _parse(params)), **_parse(params)}
    explainer = ox.Explainer(
        loaded,
        method,
        output=output,
        wrt=list(wrt) or None,
        at=at,
        probability=probability,
        providers=inputs.providers(providers),
        memory=memory,
        **options,
    )
    with show.progress(method) as step:
        result = explainer(prepared.arrays, _target(target, names), progress=step)
    _write(result, out, prepared, plain)
    show.result(result, out, names, explainer, as_json)


def _write(result: ox.Attribution, out: Path, prepared: inputs.Prepared, plain: bool) -> None:
    from onnxplain import heatmap

    if out.suffix == ".npz":
        with files.replacing(out) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **{name: result[name].values for name in result.names})
    elif out.suffix == ".npy":
        heatmap.save(out, result.values)
    else:
        name = result.names[0]
        if len(result.names) > 1:
            raise OptionError(f"a picture shows one input: {', '.join(result.names)}", "Choose with --wrt, or write .npz.")
        photo = None if plain or result[name].values.ndim != 4 else prepared.photo
        result.save(out, image=photo, layout="HWC" if prepared.layout == "NHWC" else "CHW")


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The explainer's file (.onnx).")
@_common
def convert(
    model: Path,
    out: Path,
    method: str,
    params: tuple[str, ...],
    target: str | None,
    output: str | None,
    wrt: tuple[str, ...],
    at: str | None,
    probability: bool,
    labels: Path | None,
) -> None:
    """Save MODEL and a method as one stand-alone .onnx file.

    Its inputs are MODEL's and 'target' (int64 per sample; -1: the predicted class), unless --target fixes it; its outputs are
    MODEL's and 'attribution'. It runs in any ONNX Runtime, without this package.
    """
    files.check_writable(out, {".onnx"})
    loaded = ox.load(model)
    names = inputs.labels(labels, inputs.note_labels(loaded))
    options = {**inputs.note_bounds(loaded, method, _parse(params)), **_parse(params)}
    explainer = ox.Explainer(loaded, method, output=output, wrt=list(wrt) or None, at=at, probability=probability, **options)
    explainer.export(out, target="input" if target is None else _target(target, names))
    show.line(f"{out}: {os.path.getsize(out) / 1e6:.1f} MB, explains by {method}")


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-m", "--method", help="Show node -> kind -> rule for this method.")
@click.option("-p", "--param", "params", multiple=True, metavar="KEY=VALUE", help="Option of the method; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(model: Path, method: str | None, params: tuple[str, ...], as_json: bool) -> None:
    """Show MODEL's inputs and outputs, what was changed to read it, and which methods work on it."""
    loaded = ox.load(model)
    if method:
        options = {**inputs.note_bounds(loaded, method, _parse(params)), **_parse(params)}
        show.rules(ox.Explainer(loaded, method, **options), as_json)
        return
    verdicts: dict[str, str] = {}
    for name in ox.METHODS:
        try:
            ox.Explainer(loaded, name).report()
            verdicts[name] = ""
        except ox.UnsupportedModelError as error:
            verdicts[name] = error.message
    show.model(loaded, verdicts, as_json)


@main.command("methods")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_methods(as_json: bool) -> None:
    """List the methods, their options and defaults, and the names of rules and composites."""
    table: dict[str, Mapping[str, Any]] = {
        name: {
            "summary": methods.summary(name),
            "options": {k: _plain(p.default) for k, p in signatures.signature(function).parameters.items()},
        }
        for name, function in ox.METHODS.items()
    }
    show.methods(table, as_json)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


if __name__ == "__main__":
    sys.exit(main())
