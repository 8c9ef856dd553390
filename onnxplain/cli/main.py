"""The commands: explain, convert, inspect, methods; influence is in its own file."""

from __future__ import annotations

import inspect as signatures
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

import onnxplain as ox
from onnxplain.arguments import one_of
from onnxplain.cli import drawing, inputs, options, show
from onnxplain.cli.influence import influence
from onnxplain.composites import COMPOSITES, LRP_RULES
from onnxplain.errors import OnnxplainError, OptionError
from onnxplain.storage import atomic, shared_weights

INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended
EPILOG = "Errors are one line and perhaps a hint, on standard error. Exit status: 1, or 2 for a wrong command line."


class Commands(click.Group):
    """A group that shows errors as a line and a hint instead of a traceback or a usage text."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command and exit."""
        kwargs |= {"standalone_mode": False, "prog_name": "onnxplain"}
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: show.warning(str(message))
            sys.exit(self._run(*args, **kwargs))

    def _run(self, *args: Any, **kwargs: Any) -> int:
        try:
            return int(super().main(*args, **kwargs) or 0)
        except OnnxplainError as error:
            show.error(error.message, error.hint)
            return 1
        except click.UsageError as error:
            show.error(error.format_message(), f"{error.ctx.command_path} --help" if error.ctx else "")
            return error.exit_code
        except (click.Abort, KeyboardInterrupt):
            return INTERRUPTED


@click.group(
    cls=Commands,
    epilog=EPILOG,
    invoke_without_command=True,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(ox.__version__, prog_name="onnxplain")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Explain any ONNX model: show which parts of an input spoke for its answer."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@main.command(short_help="Explain what a model says about an input, and draw it.")
@click.argument("model", type=options.PATH)
@click.argument("input", type=options.PATH)
@options.method(required=True)
@click.option(
    "--target", help="Class number or name, or index into the output (4,10,12); default: the predicted class."
)
@options.quantity()
@options.labels
@options.ask()
@options.out_of_explain
@click.option("--sample", default=0, show_default=True, help="Which sample of a batch a picture shows.")
@click.option("--report", is_flag=True, help="Show which rule each node got, what arrived there and what it gave on.")
@options.drawn
@click.option("--plain", is_flag=True, help="Draw the heatmap alone, not over the photo.")
@options.photos()
@options.running()
@options.cache
@options.as_json
def explain(
    model: Path,
    input: Path,
    method: str,
    params: tuple[str, ...],
    target: str | None,
    versus: str | None,
    of: str | None,
    labels: Path | None,
    out: Path | None,
    sample: int,
    report: bool,
    tokens: str | None,
    names: Path | None,
    plain: bool,
    providers: tuple[str, ...],
    memory: str,
    cache: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Explain what MODEL says about INPUT (a photo, .npy or .npz) and draw it.

    A photo is prepared as --mean, --std, --scale ... say, as a --preset says, or as the model's preprocessing note says
    (MODEL.preprocessing.json next to it, or 'onnxplain.preprocessing' in its metadata). Arrays go in as they are.

    It prints what was explained, its score, and for methods that promise what the attributions sum to, the residual:
    their sum minus what it should be. Where a sample is one number for each token or column, it lists the strongest.

    Pictures show what the input is: photos, bars, waveforms (N, T) or (N, C, T), slices of a volume (N, C, D, H, W).
    """
    asked = {key: given.pop(key) for key in options.ASK}
    out = out or Path(f"{input.stem}_{method}{input.suffix if input.suffix in inputs.ARRAYS else '.png'}")
    options.check_out(out, {*drawing.PICTURES, ".html", *inputs.ARRAYS}, input, model)
    with show.progress(method) as step:
        loaded = ox.load(model, cache)
        note = inputs.note_of(loaded)
        prepared = inputs.prepare(loaded, note, input, {k: v for k, v in given.items() if v is not None})
        classes = inputs.class_names(labels, note, loaded, asked["output"])
        wanted = inputs.with_bounds(prepared.preprocessing, method, options.parse(params))
        running = {"providers": inputs.providers(providers), "memory": memory}
        explainer = _explainer(loaded, method, asked, wanted | running)
        _check_one(out, explainer)
        drawn = drawing.plan(out, _explained(explainer, prepared, asked["at"]), sample, tokens, names)
        inputs.check_names(classes, loaded, asked["output"])
        quantity = options.parse_quantity(target, versus, of, classes)
        result = explainer(prepared.arrays, quantity, progress=step)
        _write(result, out, sample, drawn, None if plain else prepared.photo, None if asked["at"] else prepared.layout)
    lines = result.report() if report else None
    what = f"'{of}' at {target}" if of else None
    show.result(result, out, sample, classes, explainer, prepared, lines, drawn, as_json, what, versus is not None)


def _check_one(out: Path, explainer: ox.Explainer) -> None:
    """Only .npz files hold the attributions of several inputs."""
    if out.suffix != ".npz" and len(explainer.model.inputs) > 1 and len(explainer.explained) > 1:
        raise OptionError(
            f"several inputs get an attribution ({', '.join(explainer.explained)}), and '{out}' holds one",
            "Choose with --wrt, or write .npz.",
        )


def _explained(explainer: ox.Explainer, prepared: inputs.PreparedInput, at: str | None) -> inputs.Array | None:
    """The input that gets the attribution, if it is an input, and only one."""
    if at:
        return None
    if not isinstance(prepared.arrays, dict):
        return prepared.arrays
    names = explainer.explained if len(prepared.arrays) > 1 else tuple(prepared.arrays)
    return prepared.arrays.get(names[0]) if len(names) == 1 else None


def _write(
    result: ox.Attribution,
    out: Path,
    sample: int,
    drawn: drawing.Drawing,
    photo: inputs.Array | None,
    layout: str | None,
) -> None:
    if out.suffix == ".npz":
        with atomic.replacing(out) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **{name: result[name].values for name in result.names})
    elif drawn.options:
        result.save(out, sample=sample, **drawn.options)
    else:
        image = photo if result.values.ndim == 4 else None
        result.save(out, image=image, sample=sample, layout={"NHWC": "HWC", "NCHW": "CHW"}.get(layout or "", "auto"))


@main.command(short_help="Save a model and a method as one .onnx file that explains.")
@click.argument("model", type=options.PATH)
@options.out_of_convert
@options.share_weights
@options.method(required=True)
@click.option("--target", help="Always explain this class: number, name, index (4,10,12), or 'predicted'.")
@options.quantity()
@options.labels
@options.ask()
@options.cache
@options.as_json
def convert(
    model: Path,
    out: Path,
    method: str,
    params: tuple[str, ...],
    target: str | None,
    versus: str | None,
    of: str | None,
    labels: Path | None,
    cache: Path | None,
    share_weights: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Save MODEL and a method as one stand-alone .onnx file.

    Its inputs are MODEL's and, unless --target fixes it, 'target': int64, one per sample, -1 for the predicted class.
    Its outputs are MODEL's and 'attribution'. It runs in any ONNX Runtime, without this package.
    """
    options.check_out(out, {".onnx"}, model)
    loaded = ox.load(model, cache)
    if share_weights:
        shared_weights.files_of(loaded.source.path, loaded.source.weights, out)  # errors come before any work
    note = inputs.note_of(loaded)
    names = inputs.class_names(labels, note, loaded, asked["output"])
    how = inputs.noted_preprocessing(loaded, note)
    with show.progress(method):
        explainer = _explainer(loaded, method, asked, inputs.with_bounds(how, method, options.parse(params)))
        inputs.check_names(names, loaded, asked["output"])
        plain = (target, versus, of) == (None, None, None)
        fixed = "input" if plain else options.parse_quantity(target, versus, of, names)
        explainer.export(out, fixed, share_weights=share_weights)
    show.converted(ox.load(out), out, method, as_json)


def _explainer(model: ox.Model, method: str, asked: Mapping[str, Any], more: Mapping[str, Any]) -> ox.Explainer:
    return ox.Explainer(model, method, **{**asked, "wrt": asked["wrt"] or None}, **more)


@main.command(short_help="Show what a model is made of, and which methods work on it.")
@click.argument("model", type=options.PATH)
@options.method(required=False)
@options.ask()
@click.option("--tensors", is_flag=True, help="List the tensors that --at can name.")
@options.cache
@options.as_json
def inspect(
    model: Path,
    method: str | None,
    params: tuple[str, ...],
    tensors: bool,
    cache: Path | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Show MODEL's inputs and outputs, what was changed to read it, and which methods work on it."""
    if params and not method:
        raise OptionError("-p belongs to a method", "Name it with -m.")
    loaded = ox.load(model, cache)
    note = inputs.note_of(loaded)
    how = inputs.noted_preprocessing(loaded, note)
    if tensors:
        show.tensors(loaded.tensors, as_json)
    elif method:
        explainer = _explainer(loaded, method, asked, inputs.with_bounds(how, method, options.parse(params)))
        show.rules(explainer.report(), method, as_json)
    else:
        verdicts = {name: _in_the_way(loaded, name, asked) for name in ox.METHODS}
        show.model(loaded, note, how, verdicts, as_json)


def _in_the_way(model: ox.Model, method: str, asked: Mapping[str, Any]) -> str:
    """Why a method does not work on a model, and what to do instead; empty if it does."""
    try:
        _explainer(model, method, asked, {}).report()
    except ox.UnsupportedModelError as error:
        return str(error)
    return ""


@main.command("methods", short_help="List the methods, or describe one and its options.")
@click.argument("name", required=False)
@options.as_json
def methods(name: str | None, as_json: bool) -> None:
    """List the methods with their options and defaults; with NAME, describe that method.

    The description has the formula, what the attributions sum to, the cost in passes through the model, when to use the
    method, its papers, and each option with its unit, its default, its meaning and its valid values.
    """
    parts = {
        "rules": {name: _defaults(f) for name, f in LRP_RULES.items()},
        "composites": {name: _defaults(f) for name, f in COMPOSITES.items()},
    }
    if name is None:
        show.methods(ox.METHODS, parts, as_json)
    else:
        one_of(ox.METHODS).check("method", name)
        show.method(ox.METHODS[name], parts if name == "lrp" else {}, as_json)


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Parameters of a rule or a composite and their defaults; None for those without one."""
    parameters = signatures.signature(function).parameters.values()
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


main.add_command(influence)
