"""How a photo becomes a model input, as a value, and the note that says it.

A model file does not say how its photos are to be prepared. A preprocessing note does: a JSON object, in a file
``model.preprocessing.json`` next to ``model.onnx`` or in the model's metadata under ``onnxplain.preprocessing``, with
fields of `Preprocessing`, and optionally ``"preset"`` (the fields to start from) and ``"labels"`` (a file name)::

    {"preset": "imagenet", "size": [224, 224], "labels": "imagenet.txt"}
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxplain.errors import OptionError, did_you_mean

Shape = Sequence[int | str | None]
METADATA_KEY = "onnxplain.preprocessing"
_CHANNELS = {"RGB": 3, "BGR": 3, "GRAY": 1}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _per_channel(value: object) -> bool:
    return _is_number(value) or (isinstance(value, tuple) and len(value) in (1, 3) and all(map(_is_number, value)))


def _one_of(*known: str | None) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in known, f"one of {', '.join(repr(word) for word in known if word)}"


_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "size": (
        lambda v: v is None or (isinstance(v, tuple) and len(v) == 2 and all(_is_int(n) and n > 0 for n in v)),
        "a height and a width",
    ),
    "layout": _one_of(None, "NCHW", "NHWC"),
    "color": _one_of(None, *_CHANNELS),
    "scale": (_is_number, "a number"),
    "mean": (_per_channel, "a number or one number per channel"),
    "std": (
        lambda v: _per_channel(v) and 0 not in (v if isinstance(v, tuple) else (v,)),
        "a number or one number per channel, not zero",
    ),
    "resize": _one_of("stretch", "crop", "pad"),
    "crop": (lambda v: _is_number(v) and 0 < v <= 1, "a fraction in (0, 1]"),
    "fill": (lambda v: _is_int(v) and 0 <= v <= 255, "a pixel value in 0..255"),
    "interpolation": _one_of("linear", "cubic", "area"),
    "antialias": (lambda v: isinstance(v, bool), "true or false"),
    "dtype": _one_of("float32", "float16", "float64", "uint8"),
}


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes a model input: ``(pixel * scale - mean) / std`` with pixels in 0..255.

    What is None is taken from the shape of the model's input.

    Parameters
    ----------
    size
        Height and width.
    layout
        "NCHW" or "NHWC".
    color
        "RGB", "BGR" or "GRAY"; None is GRAY for a model with one channel, else RGB.
    scale, mean, std
        Numbers; mean and std may be tuples, one number per channel in the order of `color`.
    resize
        "stretch" to the size; "crop": resize so that the size is the fraction `crop` of the photo's shorter side, and
        cut the centre out (torchvision's Resize and CenterCrop); "pad": resize to fit in and fill up around it.
    crop
        The fraction for "crop", in (0, 1].
    fill
        The pixel value around a padded photo.
    interpolation
        "linear", "cubic" or "area".
    antialias
        True: "linear" and "cubic" widen their filter when they shrink a photo, as in Pillow and torchvision. False:
        they do not, as in OpenCV and TensorFlow.
    dtype
        The input's element type; values are rounded and clipped for "uint8".
    """

    size: tuple[int, int] | None = None
    layout: str | None = None
    color: str | None = None
    scale: float = 1.0
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    resize: str = "stretch"
    crop: float = 1.0
    fill: int = 114
    interpolation: str = "linear"
    antialias: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Check every field; lists become tuples."""
        for key, (valid, wanted) in _CHECKS.items():
            value = getattr(self, key)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, key, value)
            if not valid(value):
                raise OptionError(f"preprocessing: {key} must be {wanted}, not {value!r}")

    @classmethod
    def from_note(cls, note: Mapping[str, Any]) -> Preprocessing:
        """Make a preprocessing of a note's fields; ``"labels"`` is checked but not kept.

        Raises
        ------
        OptionError
            An unknown key, or a bad value; the message names the key.
        """
        if not isinstance(note, Mapping):
            raise OptionError(f"a preprocessing note must be a JSON object, not {note!r}")
        fields = {field.name for field in dataclasses.fields(cls)}
        known = fields | {"preset", "labels"}
        for key in note:
            if key not in known:
                raise OptionError(f"preprocessing: unknown key {key!r}", did_you_mean(str(key), known))
        if not isinstance(note.get("labels", ""), str):
            raise OptionError(f"preprocessing: labels must be a file name, not {note['labels']!r}")
        base = preset(note["preset"]) if "preset" in note else cls()
        return dataclasses.replace(base, **{key: note[key] for key in note if key in fields})

    def to_note(self) -> dict[str, Any]:
        """Return the fields as a JSON object, for `from_note`."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}

    def for_shape(self, shape: Shape) -> Preprocessing:
        """Fill in from the shape of a model's input what is None.

        Parameters
        ----------
        shape
            Four axes; free ones are names or None. The channel axis is the one that can be: 1 or 3, or free.

        Raises
        ------
        OptionError
            The shape is no photo's, contradicts this preprocessing, or leaves the size open as this does.
        """
        if len(shape) != 4:
            raise OptionError(f"a model that takes photos has an input with four axes, not {_text(shape)}")
        layout = self.layout or ("NHWC" if _channel_rank(shape[3]) > _channel_rank(shape[1]) else "NCHW")
        axes = dict(zip(layout, shape, strict=True))
        channels = axes["C"] if isinstance(axes["C"], int) else None
        color = self.color or ("GRAY" if channels == 1 else "RGB")
        if channels not in (None, _CHANNELS[color]):
            raise OptionError(f"a {color} photo has {_CHANNELS[color]} channels, the model's input is {_text(shape)}")
        for key in ("mean", "std"):
            value = getattr(self, key)
            if isinstance(value, tuple) and len(value) != _CHANNELS[color]:
                raise OptionError(f"preprocessing: {key} is {value}, but {color} has {_CHANNELS[color]} channels")
        height, width = (
            axis if isinstance(axis, int) else own
            for axis, own in zip((axes["H"], axes["W"]), self.size or (None, None), strict=True)
        )
        if height is None or width is None:
            raise OptionError(
                f"the model takes photos of any size: its input is {_text(shape)}",
                'Choose one: size=(224, 224), or "size": [224, 224] in the preprocessing note.',
            )
        if self.size not in (None, (height, width)):
            raise OptionError(f"preprocessing: size {self.size} does not fit the model's input {_text(shape)}")
        return dataclasses.replace(self, size=(height, width), layout=layout, color=color)


_IMAGENET = Preprocessing(
    scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize="crop", crop=0.875
)
_INCEPTION = Preprocessing(scale=1 / 127.5, mean=1.0)
PRESETS: Mapping[str, Preprocessing] = {
    "imagenet": _IMAGENET,
    "imagenet-caffe": Preprocessing(color="BGR", mean=(103.939, 116.779, 123.68), resize="crop", crop=0.875),
    "inception": _INCEPTION,
    "tf": _INCEPTION,
    "unit": Preprocessing(scale=1 / 255),
    "raw": Preprocessing(),
    "efficientnet-lite": Preprocessing(mean=127.0, std=128.0, resize="crop", crop=0.875),
}


def preset(name: str) -> Preprocessing:
    """Return the preprocessing of that name in `PRESETS`."""
    if not isinstance(name, str) or name not in PRESETS:
        raise OptionError(f"unknown preprocessing preset {name!r}", did_you_mean(str(name), PRESETS))
    return PRESETS[name]


@dataclass(frozen=True)
class Note:
    """A preprocessing note that was found.

    Attributes
    ----------
    preprocessing
        What it says.
    labels
        The file with the classes' names, if it names one; relative names are relative to the model's folder.
    source
        Where it was found, to be shown.
    """

    preprocessing: Preprocessing
    labels: Path | None
    source: str


def find_note(model: str | os.PathLike[str] | None, metadata: Mapping[str, str]) -> Note | None:
    """Find a model's preprocessing note: the file next to the model, else the entry in its metadata, else None.

    Parameters
    ----------
    model
        The model's file, if it has one.
    metadata
        The model's metadata.
    """
    folder, text, source = Path(), metadata.get(METADATA_KEY), f"the model's metadata ({METADATA_KEY})"
    try:
        if model is not None:
            folder, file = Path(model).parent, Path(model).with_suffix(".preprocessing.json")
            if file.is_file():
                source = f"'{file}'"
                text = file.read_text(encoding="utf-8")
        if text is None:
            return None
        note = json.loads(text)
        preprocessing = Preprocessing.from_note(note)
    except OptionError as error:
        raise OptionError(f"{source}: {error.message}", error.hint) from None
    except (OSError, ValueError) as error:  # not readable, not UTF-8, not JSON
        raise OptionError(f"{source} cannot be read: {error}") from None
    return Note(preprocessing, folder / note["labels"] if "labels" in note else None, source)


def _channel_rank(axis: int | str | None) -> int:
    return int(axis in (1, 3)) + int(axis in (1, 3) or not isinstance(axis, int))


def _text(shape: Shape) -> str:
    return f"({', '.join('?' if axis is None else str(axis) for axis in shape)})"
