"""`Preprocessing`, the steps from a photo to a model input, and the note that stores them with a model.

An ONNX file does not record how its photos must be prepared. A preprocessing note does. It is a JSON object in a file
``model.preprocessing.json`` next to ``model.onnx``, or in the model's metadata under ``onnxplain.preprocessing``. Its
keys are fields of `Preprocessing`, and optionally ``"preset"`` (a preset to start from) and ``"labels"`` (the name of
a file with one class name per line)::

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

from onnxplain.arguments import one_of
from onnxplain.errors import OptionError, did_you_mean
from onnxplain.graph.ir import Dim

Shape = Sequence[Dim]
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
    """The steps from a photo to a model input: resize, then ``(pixel * scale - mean) / std`` with pixels in 0..255.

    Fields that are None are derived from the shape of the model's input (`for_shape`).

    Parameters
    ----------
    size
        Height and width of the model's input, in pixels.
    layout
        "NCHW" or "NHWC".
    color
        "RGB", "BGR" or "GRAY". None: GRAY for an input with one channel, else RGB.
    scale, mean, std
        Numbers; mean and std are in units of ``pixel * scale``, and may be tuples with one number per channel, in the
        order of ``color``.
    resize
        "stretch": resize to ``size`` without keeping the aspect ratio. "crop": resize until ``size`` is the share
        ``crop`` of the photo, and cut out the centre (torchvision's Resize and CenterCrop). "pad": resize until the
        whole photo fits into ``size``, and fill the border.
    crop
        Share of the resized photo's shorter side that is kept, in (0, 1]; for "crop".
    fill
        Pixel value of the border, 0..255; for "pad". The default, 114, is that of the YOLO detectors.
    interpolation
        "linear", "cubic" or "area".
    antialias
        True: "linear" and "cubic" widen their filter when shrinking a photo, as Pillow and torchvision do. False: they
        do not, as in OpenCV and TensorFlow.
    dtype
        Element type of the input. For "uint8", values are rounded and clipped to 0..255.

    Raises
    ------
    OptionError
        A field has an invalid value.
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
        """Create a preprocessing from a note's fields; ``"labels"`` is checked but not stored.

        Raises
        ------
        OptionError
            A key is unknown or its value invalid; the message names the key.
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
        """Return a copy whose None fields are filled in from the shape of a model's input.

        Parameters
        ----------
        shape
            Sizes of the four axes; free axes are names or None. If ``layout`` is None, it is the layout whose channel
            axis has size 1 or 3 (or else is free); NCHW if both fit.

        Raises
        ------
        OptionError
            The shape is not that of photos, contradicts this preprocessing, or leaves the size open while ``size`` is
            None.
        """
        if len(shape) != 4:
            raise OptionError(f"a model that takes photos must have an input with four axes, not {_text(shape)}")
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
            axis if isinstance(axis, int) else field
            for axis, field in zip((axes["H"], axes["W"]), self.size or (None, None), strict=True)
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
    """Return the preprocessing of this name in `PRESETS`.

    Raises
    ------
    OptionError
        The name is unknown; the message lists the known ones.
    """
    one_of(PRESETS).check("preprocessing preset", name)
    return PRESETS[name]


@dataclass(frozen=True)
class Note:
    """A preprocessing note as read from a file or from a model's metadata.

    Attributes
    ----------
    preprocessing
        The preprocessing that it describes.
    labels
        Path of the file with the class names, or None. Relative names are resolved against the model's folder.
    source
        Origin of the note, for display: the file, or the metadata.
    """

    preprocessing: Preprocessing
    labels: Path | None
    source: str


def find_note(model: str | os.PathLike[str] | None, metadata: Mapping[str, str]) -> Note | None:
    """Find a model's preprocessing note: in the file next to the model, else in its metadata, else None.

    Parameters
    ----------
    model
        Path of the model, or None for a model in memory.
    metadata
        The model's metadata.

    Raises
    ------
    OptionError
        The note cannot be read, or a value in it is invalid; the message names its origin.
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


def _channel_rank(axis: Dim) -> int:
    """Rate an axis as the channel axis: 2 for size 1 or 3, 1 for a free size, 0 for another size."""
    return int(axis in (1, 3)) + int(axis in (1, 3) or not isinstance(axis, int))


def _text(shape: Shape) -> str:
    return f"({', '.join('?' if axis is None else str(axis) for axis in shape)})"
