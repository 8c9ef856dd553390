"""Input of the command line: photos, arrays, labels, preprocessing notes."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import onnxplain as ox
from onnxplain.errors import InputError, OptionError
from onnxplain.imaging.preprocessing import PRESETS, Note, Preprocessing, find_note, preset

Array = np.ndarray[Any, Any]

BOUNDED = {"deep_taylor", "epsilon_gamma_box", "by_depth", "z_box"}  # methods, composites and rules that take low, high
ARRAYS = (".npy", ".npz")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class PreparedInput:
    """A model input, and for photos also the photo at the model's size and its preprocessing."""

    arrays: Array | dict[str, Array]
    photo: Array | None = None
    preprocessing: Preprocessing | None = None

    @property
    def layout(self) -> str | None:
        """Order of the axes, NCHW or NHWC, for photos; else None."""
        return self.preprocessing.layout if self.preprocessing else None


def presets() -> list[str]:
    """Names of the known preprocessing presets."""
    return list(PRESETS)


def providers(names: Sequence[str]) -> list[str] | None:
    """Full names of execution providers, from short or full ones; None for no names."""
    return [PROVIDERS.get(name.lower(), name) for name in names] or None


def note_of(model: ox.Model) -> Note | None:
    """The model's preprocessing note, if it has one."""
    return find_note(model.source.path, model.source.metadata)


def load_array(path: Path, mapped: bool = False) -> Array:
    """Load the array of a .npy file; ``mapped`` leaves it on disk, where parts are read as they are used."""
    array = _load(path, mapped)
    if not isinstance(array, np.ndarray):
        raise InputError(f"'{path}' holds several arrays, not one", "Let its name end in .npz.")
    return array


def _load(path: Path, mapped: bool = False) -> Array | dict[str, Array]:
    try:
        loaded = np.load(path, "r" if mapped else None, allow_pickle=False)
        return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else np.asarray(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read '{path}': {getattr(error, 'strerror', None) or error}") from None


def prepare(model: ox.Model, note: Note | None, path: Path, options: Mapping[str, Any]) -> PreparedInput:
    """Read a file and make a model input of it.

    Raises
    ------
    InputError
        The file cannot be read, or the model does not take photos.
    OptionError
        Neither options nor a note say how to prepare a photo.
    """
    if path.suffix in ARRAYS:
        check_unprepared(path, options)
        return PreparedInput(_load(path) if path.suffix == ".npz" else load_array(path))
    inputs = model.inputs
    if len(inputs) != 1 or len(inputs[0].shape or ()) != 4:
        takes = ", ".join(map(str, inputs))
        raise InputError(f"'{path}' is taken for a photo, but the model takes {takes}", "Give arrays: .npy or .npz.")
    from onnxplain.imaging.images import preprocess, read_image, view

    shape = inputs[0].shape or ()
    how = replace(_how(note, path, options), dtype=str(inputs[0].dtype)).for_shape(shape)
    image = read_image(path)
    return PreparedInput(preprocess(image, how, shape), view(image, how, shape), how)


def check_unprepared(path: Path, options: Mapping[str, Any]) -> None:
    """Raise OptionError if there are options for photos: arrays are not prepared."""
    if options:
        raise OptionError(f"--{next(iter(options))} is for photos; arrays such as '{path}' are not prepared")


def _how(note: Note | None, path: Path, options: Mapping[str, Any]) -> Preprocessing:
    given = {key: _numbers(key, value) for key, value in options.items() if key != "preset"}
    if "preset" in options:
        how = preset(options["preset"])
    elif note:
        how = note.preprocessing
    elif given:
        how = Preprocessing()
    else:
        raise OptionError(
            f"it is unknown how '{path}' becomes an input of the model",
            f"Give --preset ({', '.join(PRESETS)}), or --mean, --std and --scale, or a note next to the model.",
        )
    return replace(how, **given)


def _numbers(key: str, value: Any) -> Any:
    """Parse "224" or "224,192": mean and std are one number or one per channel, size is a pair."""
    if key not in ("mean", "std", "size"):
        return value
    try:
        parts = tuple((int if key == "size" else float)(part) for part in str(value).split(","))
    except ValueError:
        raise OptionError(f"--{key} takes numbers separated by commas, not {value!r}") from None
    if key == "size":
        return parts * 2 if len(parts) == 1 else parts
    return parts[0] if len(parts) == 1 else parts


def class_names(given: Path | None, note: Note | None, model: ox.Model, output: str | None) -> list[str] | None:
    """Names of the classes: from the user's file, else from the note's, else from the model's metadata."""
    path = given or (note.labels if note and note.labels and note.labels.is_file() else None)
    if path is None:
        stored = next((names for name, names in model.labels.items() if output in (None, name)), ())
        return [str(name) for name in stored] or None
    from onnxplain.imaging.images import read_labels

    return read_labels(path)


def check_names(names: Sequence[str] | None, model: ox.Model, output: str | None) -> None:
    """Raise InputError if the number of names is not that of the output's classes."""
    if names is None or model.free_sizes:
        return
    explained = next((v for v in model.outputs if (v.name == output if output else v.is_float)), None)
    if explained is None or explained.shape is None or len(explained.shape) != 2:
        return
    classes = explained.shape[1]
    if isinstance(classes, int) and classes != len(names):
        raise InputError(
            f"the labels name {len(names)} classes, but the output '{explained.name}' has {classes}",
            "Give --labels with one line per class, in order.",
        )


def with_bounds(how: Preprocessing | None, method: str, options: dict[str, Any]) -> dict[str, Any]:
    """Add low and high, the values of black and white pixels in the model's units, for methods that take them."""
    names = {method, options.get("rule"), options.get("composite")}
    if how is None or method not in ("lrp", "deep_taylor") or names.isdisjoint(BOUNDED):
        return options
    per_channel = (-1, 1, 1) if how.layout == "NCHW" else (1, 1, -1)
    mean, std = (np.atleast_1d(np.asarray(v, np.float32)).reshape(per_channel) for v in (how.mean, how.std))
    black, white = (0 - mean) / std, (255 * how.scale - mean) / std
    return {"low": np.minimum(black, white), "high": np.maximum(black, white), **options}


def noted_preprocessing(model: ox.Model, note: Note | None) -> Preprocessing | None:
    """Preprocessing of the note, completed from the shape of the model's input; None if the input is not a photo."""
    shape = model.inputs[0].shape if len(model.inputs) == 1 else None
    return note.preprocessing.for_shape(shape) if note and shape is not None and len(shape) == 4 else None


def explainer(model: ox.Model, method: str, question: Mapping[str, Any], more: Mapping[str, Any]) -> ox.Explainer:
    """Make an explainer of what the command line's options say; ``more``: its other parameters and the method's."""
    return ox.Explainer(model, method, **{**question, "wrt": question["wrt"] or None}, **more)
