"""The commands explain, convert, inspect and methods; `onnxplain.cli.influence` has the fifth."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
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

INTERRUPTED = 130  # exit status of a program that Ctrl-C ended, by the convention of shells
EPILOG = (
    "Errors are one line and perhaps a hint, on standard error."
    " Exit status: 0 for success, 1 for an error, 2 for a wrong command line."
)


class Commands(click.Group):
    """A group that prints an error as one line and a hint instead of a traceback or a usage text."""

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
    """Explain any ONNX model: which parts of an input contributed to a model's prediction, and with which sign."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@main.command(short_help="Explain the prediction for an input, and draw the explanation.")
@click.argument("model", type=options.PATH)
@click.argument("input", type=options.PATH)
@options.method(required=True)
@click.option(
    "--target", help="Class number or name, or index into the output (4,10,12). Default: the predicted class."
)
@options.quantity()
@options.labels
@options.ask()
@options.out_of_explain
@click.option(
    "--sample", default=0, show_default=True, help="Number of the sample, from 0, that a picture of a batch shows."
)
@click.option(
    "--report",
    is_flag=True,
    help="Show the rule of each node, and the relevance or gradient that it received and passed on.",
)
@options.drawn
@click.option("--plain", is_flag=True, help="Draw the heatmap alone instead of over the photo.")
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
    **photo_options: Any,
) -> None:
    """Explain the prediction of MODEL for INPUT, and write the explanation as a picture, a page or an array.

    INPUT is a photo, or a batch of arrays (.npy, .npz) that goes into the model as it is. A photo is prepared by the
    options --preset, --mean, --std, --scale ..., or else by the model's preprocessing note: a file
    MODEL.preprocessing.json next to it, or 'onnxplain.preprocessing' in its metadata.

    The command prints what was explained and its score. For methods that promise what the attributions sum to, it also
    prints the residual: their sum minus that value. For texts and tables it lists the tokens or columns with the
    largest attributions.

    The picture depends on the input: a photo with a heatmap over it, bars for a table, a waveform for (N, T) or
    (N, C, T), slices of a volume (N, C, D, H, W).
    """
    question = {key: photo_options.pop(key) for key in options.ASK}
    out = out or Path(f"{input.stem}_{method}{input.suffix if input.suffix in inputs.ARRAYS else '.png'}")
    options.check_out(out, {*drawing.PICTURES, ".html", *inputs.ARRAYS}, input, model)
    given = {name: value for name, value in photo_options.items() if value is not None}
    with show.progress(method) as step:
        loaded = ox.load(model, cache)
        note = inputs.note_of(loaded)
        prepared = inputs.prepare(loaded, note, input, given)
        classes = inputs.class_names(labels, note, loaded, question["output"])
        method_options = inputs.with_bounds(prepared.preprocessing, method, options.parse(params))
        running = {"providers": inputs.providers(providers), "memory": memory}
        explainer = _explainer(loaded, method, question, method_options | running)
        _check_one(out, explainer)
        drawn = drawing.plan(out, _explained(explainer, prepared, question["at"]), sample, tokens, names)
        inputs.check_names(classes, loaded, question["output"])
        quantity = options.parse_quantity(target, versus, of, classes)
        result = explainer(prepared.arrays, quantity, progress=step)
        photo, layout = None if plain else prepared.photo, None if question["at"] else prepared.layout
        _write(result, out, sample, drawn, photo, layout)
    show.result(
        result,
        out=out,
        sample=sample,
        classes=classes,
        explainer=explainer,
        prepared=prepared,
        report=result.report() if report else None,
        drawn=drawn,
        as_json=as_json,
        quantity=f"'{of}' at {target}" if of else None,
        compared=versus is not None,
    )


def _check_one(out: Path, explainer: ox.Explainer) -> None:
    """Raise OptionError for several attributions and a file that holds only one: not .npz."""
    if out.suffix != ".npz" and len(explainer.model.inputs) > 1 and len(explainer.explained) > 1:
        raise OptionError(
            f"several inputs get an attribution ({', '.join(explainer.explained)}), and '{out}' holds one",
            "Choose with --wrt, or write .npz.",
        )


def _explained(explainer: ox.Explainer, prepared: inputs.PreparedInput, at: str | None) -> inputs.Array | None:
    """Array of the input that gets the attribution; None for an internal tensor, or for several inputs."""
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


@main.command(short_help="Save a model and a method as one .onnx file that returns explanations.")
@click.argument("model", type=options.PATH)
@options.out_of_convert
@options.share_weights
@options.method(required=True)
@click.option("--target", help="Fix what is explained: class number or name, index (4,10,12), or 'predicted'.")
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
    **question: Any,
) -> None:
    """Save MODEL and a method as one stand-alone .onnx file, which runs in ONNX Runtime without this package.

    Its inputs are MODEL's and, unless --target fixes it, 'target': int64, one per sample, -1 for the predicted class.
    Its outputs are MODEL's and 'attribution'.
    """
    options.check_out(out, {".onnx"}, model)
    loaded = ox.load(model, cache)
    if share_weights:
        shared_weights.files_of(
            loaded.source.path, loaded.source.weights, out
        )  # so that its errors come before any work
    note = inputs.note_of(loaded)
    names = inputs.class_names(labels, note, loaded, question["output"])
    how = inputs.noted_preprocessing(loaded, note)
    with show.progress(method):
        explainer = _explainer(loaded, method, question, inputs.with_bounds(how, method, options.parse(params)))
        inputs.check_names(names, loaded, question["output"])
        plain = (target, versus, of) == (None, None, None)
        fixed = "input" if plain else options.parse_quantity(target, versus, of, names)
        explainer.export(out, fixed, share_weights=share_weights)
    show.converted(ox.load(out), out, method, as_json)


def _explainer(model: ox.Model, method: str, question: Mapping[str, Any], more: Mapping[str, Any]) -> ox.Explainer:
    return ox.Explainer(model, method, **{**question, "wrt": question["wrt"] or None}, **more)


@main.command(short_help="Show a model's inputs and outputs, and which methods work on it.")
@click.argument("model", type=options.PATH)
@options.method(required=False)
@options.ask()
@click.option("--tensors", is_flag=True, help="List the internal tensors that --at can name.")
@options.cache
@options.as_json
def inspect(
    model: Path,
    method: str | None,
    params: tuple[str, ...],
    tensors: bool,
    cache: Path | None,
    as_json: bool,
    **question: Any,
) -> None:
    """Show MODEL's inputs and outputs, the changes that were made to its graph, and which methods work on it.

    With -m, show the rule that this method gives each node instead; with --tensors, the internal tensors.
    """
    if params and not method:
        raise OptionError("-p belongs to a method", "Name it with -m.")
    loaded = ox.load(model, cache)
    note = inputs.note_of(loaded)
    how = inputs.noted_preprocessing(loaded, note)
    if tensors:
        show.tensors(loaded.tensors, as_json)
    elif method:
        explainer = _explainer(loaded, method, question, inputs.with_bounds(how, method, options.parse(params)))
        show.rules(explainer.report(), method, as_json)
    else:
        verdicts = {name: _in_the_way(loaded, name, question) for name in ox.METHODS}
        show.model(loaded, note, how, verdicts, as_json)


def _in_the_way(model: ox.Model, method: str, question: Mapping[str, Any]) -> str:
    """Reason why a method does not work on a model, with a hint; empty if it works."""
    try:
        _explainer(model, method, question, {}).report()
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
    parts: show.Parts = {"rules": LRP_RULES, "composites": COMPOSITES}
    if name is None:
        show.methods(ox.METHODS, parts, as_json)
    else:
        one_of(ox.METHODS).check("method", name)
        show.method(ox.METHODS[name], parts if name == "lrp" else {}, as_json)


main.add_command(influence)
