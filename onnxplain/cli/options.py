"""The options that commands share, and what their texts mean."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

import onnxplain as ox
from onnxplain.cli import inputs
from onnxplain.errors import OptionError, OutputError
from onnxplain.runtime.batching import DEFAULT_MEMORY
from onnxplain.storage.atomic import check_writable

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

PATH = click.Path(path_type=Path)
ASK = ("output", "wrt", "at", "probability")  # options that say what is explained, under the names that `Explainer` has

out_of_explain = click.option(
    "-o",
    "--out",
    type=PATH,
    help="Picture (.png, .jpg), page of text or a table (.html), or raw values (.npy, .npz); default: INPUT_METHOD.png,"
    " .npy or .npz in this folder.",
)
out_of_convert = click.option("-o", "--out", required=True, type=PATH, help="The explainer's file (.onnx).")
share_weights = click.option(
    "--share-weights",
    is_flag=True,
    help="Refer to MODEL's file, in OUT's folder or below, for its weights instead of storing them again.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
labels = click.option("--labels", type=PATH, help="Text file that names the classes, one a line.")

cache = click.option(
    "--cache",
    type=PATH,
    help="Folder that keeps, for the next time, what takes long to make of a model and a method, at most 4 GiB;"
    " default: $ONNXPLAIN_CACHE, or nothing is kept.",
)

_params = click.option(
    "-p", "--param", "params", multiple=True, metavar="KEY=VALUE", help="Option of the method; repeatable."
)


def method(required: bool, default: str = "lrp") -> Decorator:
    """Options that choose a method and its options."""
    if required:
        chosen = click.option("-m", "--method", default=default, show_default=True, help="See 'onnxplain methods'.")
    else:
        chosen = click.option("-m", "--method", help="Show node -> kind -> rule for this method.")
    return _together(chosen, _params)


def ask() -> Decorator:
    """Options that say what is explained in terms of what."""
    return _together(
        click.option("--output", help="Model output to explain; default: the first floating-point one."),
        click.option("--wrt", multiple=True, help="Input that gets the attribution; repeatable; default: all."),
        click.option("--at", help="Tensor that gets it instead of an input; see 'onnxplain inspect --tensors'."),
        click.option("--probability", is_flag=True, help="Explain the value after a final softmax, not before it."),
    )


def drawn(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say what the values of an array are called."""
    return _together(
        click.option(
            "--tokens",
            metavar="FILE|bytes",
            help="Text file with the shown sample's tokens, one a line; 'bytes' if it is bytes.",
        ),
        click.option("--names", type=PATH, help="Text file that names the columns of a table, one a line."),
    )(function)


def photos() -> Decorator:
    """Options that say how a photo becomes an input."""
    return _together(
        click.option("--preset", help="Known preprocessing: " + ", ".join(inputs.presets()) + "."),
        click.option("--mean", help="Mean to subtract: a number, or one per channel, 123.7,116.8,103.9."),
        click.option("--std", help="Standard deviation to divide by, likewise."),
        click.option("--scale", type=float, help="Factor on the pixels (0..255) before that."),
        click.option("--layout", type=click.Choice(["NCHW", "NHWC"]), help="Axes of the model's input."),
        click.option("--color", type=click.Choice(["RGB", "BGR", "GRAY"]), help="Order of the channels."),
        click.option("--size", help="Height and width, 224 or 224,224; default: from the model."),
        click.option("--resize", type=click.Choice(["stretch", "crop", "pad"]), help="How a photo is made to fit."),
    )


def running() -> Decorator:
    """Options that say what runs the model."""
    provider = "cpu, cuda, or an ONNX Runtime provider; repeatable."
    memory = "Bound on what one run takes besides the loaded model."
    return _together(
        click.option("--provider", "providers", multiple=True, help=provider),
        click.option("--memory", default=f"{DEFAULT_MEMORY >> 30} GiB", show_default=True, help=memory),
    )


def _together(*options: Decorator) -> Decorator:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def parse(items: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE options of a method: JSON values, numbers separated by commas, .npy files, or plain text."""
    options: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not (key and equals and text):
            raise OptionError(f"-p takes KEY=VALUE, not {item!r}", "For example: -p steps=128")
        if key.strip() in (*ASK, "providers", "memory", "cache"):
            raise OptionError(f"'{key.strip()}' is not an option of a method", "See --help for the command's.")
        options[key.strip()] = _value(text.strip())
    return options


def _value(text: str) -> Any:
    if text.endswith(".npy"):
        return inputs.load_array(Path(text))
    for listed in (text, f"[{text}]"):
        try:
            value = json.loads(listed)
        except json.JSONDecodeError:
            continue
        return tuple(value) if isinstance(value, list) else value
    return text


def quantity() -> Decorator:
    """Options that say what is explained where it is not just a class."""
    return _together(
        click.option("--versus", help="Explain why it is the target rather than this class."),
        click.option("--of", help="Explain a part of this internal tensor; --target is its index, 12,... a channel."),
    )


def parse_quantity(
    target: str | None, versus: str | None, of: str | None, names: Sequence[str] | None
) -> int | tuple[Any, ...] | ox.Quantity | None:
    """What is explained: a class, an element, a difference of two, or an internal neuron or channel."""
    found = parse_target(target, names if of is None else None)
    if of is not None and target is None:
        raise OptionError(
            "--of needs --target: an index into the tensor without its batch axis", "12,... is a channel."
        )
    sliced = isinstance(found, tuple) and not all(isinstance(part, int) for part in found)
    one = ox.Neuron(of, found) if of is not None else ox.Class(found)
    if versus is not None:
        other = parse_target(versus, names if of is None else None)
        return one - (ox.Class(other) if of is None else ox.Neuron(of, other))
    return one if of is not None or sliced else found


def parse_target(text: str | None, names: Sequence[str] | None) -> int | tuple[Any, ...] | None:
    """A target from a class number, an index "4,10,12", one with ":" or "...", a class name, or "predicted"."""
    if text is None or text == "predicted":
        return None
    parts: dict[str, Any] = {":": slice(None), "...": ...}
    try:
        index = tuple(parts[part] if part in parts else int(part) for part in text.split(","))
    except ValueError:
        return _named(text, names)
    return index[0] if len(index) == 1 and isinstance(index[0], int) else index


def _named(text: str, names: Sequence[str] | None) -> int:
    if not names:
        hint = "Give --labels, a text file with one name a line."
        raise ox.TargetError(f"{text!r} is no class number, and nothing names the classes", hint)
    lower = [name.lower() for name in names]
    matches = [i for i, name in enumerate(lower) if name == text.lower()]
    if len(matches) > 1:
        raise ox.TargetError(f"several classes are called {text!r}: {', '.join(map(str, matches))}", "Give the number.")
    if not matches:
        close = difflib.get_close_matches(text.lower(), lower, n=3)
        near = close + [name for name in lower if text.lower() in name and name not in close][:3]
        known = ", ".join(f"{names[lower.index(name)]!r} ({lower.index(name)})" for name in near)
        raise ox.TargetError(f"there is no class called {text!r}", f"Near: {known}." if known else "Give its number.")
    return matches[0]


def check_out(out: Path, endings: set[str], *read: Path) -> None:
    """Raise OutputError unless ``out`` can be written and is none of the files that are read."""
    check_writable(out, endings)
    for path in read:
        if out.exists() and path.exists() and out.samefile(path):
            raise OutputError(f"cannot write '{out}': it is the file that is read", "Choose another name with -o.")
