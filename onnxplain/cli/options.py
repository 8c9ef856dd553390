"""Options that several commands share, and how their texts are parsed."""

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
ASK = ("output", "wrt", "at", "probability")  # what is explained, by the names of `Explainer`'s parameters

out_of_explain = click.option(
    "-o",
    "--out",
    type=PATH,
    help="File to write: a picture (.png, .jpg), a page for a text or a table (.html), or the raw attributions (.npy,"
    " .npz). Default: INPUT_METHOD.png in this folder, or .npy or .npz for an input of that type.",
)
out_of_convert = click.option("-o", "--out", required=True, type=PATH, help="File to write: the explainer (.onnx).")
share_weights = click.option(
    "--share-weights",
    is_flag=True,
    help="Store no second copy of the weights: OUT refers to MODEL's file, which must be in OUT's folder or below it.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
labels = click.option("--labels", type=PATH, help="Text file with the names of the classes, one per line.")

cache = click.option(
    "--cache",
    type=PATH,
    help="Cache folder for prepared models and compiled methods (up to 4 GiB). Default: $ONNXPLAIN_CACHE; without"
    " either, nothing is kept.",
)

_params = click.option(
    "-p",
    "--param",
    "params",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the method, such as steps=128; repeatable. 'onnxplain methods NAME' explains them.",
)


def method(required: bool, default: str = "lrp") -> Decorator:
    """Add -m and -p: the method and its options."""
    if required:
        chosen = click.option(
            "-m",
            "--method",
            default=default,
            show_default=True,
            help="Name of a method; 'onnxplain methods' lists them.",
        )
    else:
        chosen = click.option("-m", "--method", help="Show which rule this method gives each node.")
    return _together(chosen, _params)


def ask() -> Decorator:
    """Add the options that choose the explained output, and the tensors that get the attribution."""
    return _together(
        click.option("--output", help="Model output to explain. Default: the first floating-point one."),
        click.option(
            "--wrt",
            multiple=True,
            help="Input that gets an attribution; repeatable. Default: all floating-point inputs.",
        ),
        click.option(
            "--at", help="Internal tensor that gets the attribution instead; 'onnxplain inspect --tensors' lists them."
        ),
        click.option(
            "--probability", is_flag=True, help="Explain the value after a final softmax or sigmoid, not before."
        ),
    )


def drawn(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name the values of an array."""
    return _together(
        click.option(
            "--tokens",
            metavar="FILE|bytes",
            help="Text file with the tokens of the shown sample, one per line; or the word bytes, if the input is"
            " bytes.",
        ),
        click.option("--names", type=PATH, help="Text file with the names of a table's columns, one per line."),
    )(function)


def photos() -> Decorator:
    """Add the options that say how a photo becomes an input: (pixel * scale - mean) / std."""
    return _together(
        click.option("--preset", help="Named preprocessing to start from: " + ", ".join(inputs.presets()) + "."),
        click.option(
            "--mean", help="Mean to subtract after --scale: a number, or one per channel, such as 0.485,0.456,0.406."
        ),
        click.option("--std", help="Standard deviation to divide by after that: a number, or one per channel."),
        click.option("--scale", type=float, help="Factor on the pixels, which are 0 to 255; applied first."),
        click.option("--layout", type=click.Choice(["NCHW", "NHWC"]), help="Order of the axes of the model's input."),
        click.option(
            "--color", type=click.Choice(["RGB", "BGR", "GRAY"]), help="Channels of the model's input, in order."
        ),
        click.option("--size", help="Height and width in pixels, such as 224 or 224,192. Default: the model's."),
        click.option(
            "--resize",
            type=click.Choice(["stretch", "crop", "pad"]),
            help="How a photo is brought to that size: stretched, cropped to its middle, or padded.",
        ),
    )


def running() -> Decorator:
    """Add the options that say on what hardware, and in how much memory, the model runs."""
    provider = "cpu, cuda, or the name of an ONNX Runtime execution provider; repeatable, in order of preference."
    memory = "Most memory that one run may take besides the loaded model: bytes, or a text such as '512 MiB'."
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
    """Parse the KEY=VALUE options of a method: JSON values, numbers separated by commas, .npy files, or plain text."""
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
    """Add the options that explain something other than the score of one class."""
    return _together(
        click.option("--versus", help="Explain why the target rather than this class: the difference of their scores."),
        click.option(
            "--of",
            help="Explain an element of this internal tensor: --target is its index without the batch axis, and 12,..."
            " the sum of channel 12.",
        ),
    )


def parse_quantity(
    target: str | None, versus: str | None, of: str | None, names: Sequence[str] | None
) -> int | tuple[Any, ...] | ox.Quantity | None:
    """Parse what is explained: a class, an element, a difference of two, or an internal neuron or channel."""
    index = parse_target(target, names if of is None else None)
    if of is not None and target is None:
        raise OptionError(
            "--of needs --target: an index into the tensor, without its batch axis", "12,... is channel 12."
        )
    sliced = isinstance(index, tuple) and not all(isinstance(part, int) for part in index)
    one = ox.Neuron(of, index) if of is not None else ox.Class(index)
    if versus is not None:
        other = parse_target(versus, names if of is None else None)
        return one - (ox.Class(other) if of is None else ox.Neuron(of, other))
    return one if of is not None or sliced else index


def parse_target(text: str | None, names: Sequence[str] | None) -> int | tuple[Any, ...] | None:
    """Parse a target: a class number or name, an index such as "4,10,12", one with ":" or "...", or "predicted"."""
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
        hint = "Give --labels, a text file with one name per line."
        raise ox.TargetError(f"{text!r} is not a class number, and the classes have no names", hint)
    lower = [name.lower() for name in names]
    matches = [i for i, name in enumerate(lower) if name == text.lower()]
    if len(matches) > 1:
        raise ox.TargetError(f"several classes are called {text!r}: {', '.join(map(str, matches))}", "Give the number.")
    if not matches:
        close = difflib.get_close_matches(text.lower(), lower, n=3)
        near = close + [name for name in lower if text.lower() in name and name not in close][:3]
        listed = ", ".join(f"{names[lower.index(name)]!r} ({lower.index(name)})" for name in near)
        raise ox.TargetError(
            f"there is no class called {text!r}", f"Similar: {listed}." if listed else "Give its number."
        )
    return matches[0]


def check_out(out: Path, endings: set[str], *read: Path) -> None:
    """Raise OutputError unless ``out`` can be written and is another file than those that are read."""
    check_writable(out, endings)
    for path in read:
        if out.exists() and path.exists() and out.samefile(path):
            raise OutputError(f"cannot write '{out}': it is the file that is read", "Choose another name with -o.")
