"""The command group, and the commands convert and inspect; the other commands have modules of their own."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import onnxplain as ox
from onnxplain.cli import inputs, options, show
from onnxplain.cli.explain import explain
from onnxplain.cli.influence import influence
from onnxplain.cli.methods import methods
from onnxplain.errors import OnnxplainError, OptionError
from onnxplain.storage import shared_weights

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
        explainer = inputs.explainer(loaded, method, question, inputs.with_bounds(how, method, options.parse(params)))
        inputs.check_names(names, loaded, question["output"])
        plain = (target, versus, of) == (None, None, None)
        fixed = "input" if plain else options.parse_quantity(target, versus, of, names)
        explainer.export(out, fixed, share_weights=share_weights)
    show.converted(ox.load(out), out, method, as_json)


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
        explainer = inputs.explainer(loaded, method, question, inputs.with_bounds(how, method, options.parse(params)))
        show.rules(explainer.report(), method, as_json)
    else:
        verdicts = {name: _in_the_way(loaded, name, question) for name in ox.METHODS}
        show.model(loaded, note, how, verdicts, as_json)


def _in_the_way(model: ox.Model, method: str, question: Mapping[str, Any]) -> str:
    """Reason why a method does not work on a model, with a hint; empty if it works."""
    try:
        inputs.explainer(model, method, question, {}).report()
    except ox.UnsupportedModelError as error:
        return str(error)
    return ""


for command in (explain, influence, methods):
    main.add_command(command)
