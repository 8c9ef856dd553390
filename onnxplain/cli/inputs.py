"""What the command line reads: photos, arrays, labels, preprocessing notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import onnxplain as ox
from onnxplain.errors import InputError, OptionError
from onnxplain.preprocessing import PRESETS, Preprocessing, find_note, preset

Array = np.ndarray[Any, Any]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class Prepared:
    """A model input, and what is known of the photo it came from."""

    arrays: Array | dict[str, Array]
    photo: Array | None = None
    preprocessing: Preprocessing | None = None
    labels: Path | None = None

    @property
    def layout(self) -> str | None:
        """NCHW or NHWC, for photos."""
        return self.preprocessing.layout if self.preprocessing else None

    def bounds(self, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The bounds of the input, for rules that need them and if the user gave none."""
        return _bounds(self.preprocessing, method, options)


def presets() -> list[str]:
    """Names of the known preprocessings."""
    return list(PRESETS)


def providers(names: tuple[str, ...]) -> list[str] | None:
    """Execution providers from short or full names."""
    return [PROVIDERS.get(name.lower(), name) for name in names] or None


def load_array(path: Path) -> Array:
    """One array from a .npy file."""
    try:
        array: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read '{path}': {getattr(error, 'strerror', None) or error}") from None
    return array


def prepare(model: ox.Model, path: Path, options: dict[str, Any]) -> Prepared:
    """Read ``path`` and make a model input of it.

    Raises
    ------
    InputError
        The file cannot be read, or the model does not take photos.
    OptionError
        Nobody says how a photo is to be prepared.
    """
    note = find_note(model.source.path, model.source.metadata)
    if path.suffix in (".npy", ".npz"):
        if options:
            raise OptionError(f"--{next(iter(options))} is for photos; '{path}' goes in as it is")
        arrays = load_array(path)
        stored = {name: arrays[name] for name in arrays} if path.suffix == ".npz" else arrays
        return Prepared(stored, labels=note.labels if note else None)
    inputs = model.inputs
    if len(inputs) != 1 or len(inputs[0].shape or ()) != 4:
        raise InputError(f"'{path}' is taken for a photo, and the model takes {', '.join(map(str, inputs))}", "Use .npy or .npz.")
    from onnxplain.images import preprocess, read_image, view

    given = {key: _numbers(key, value) for key, value in options.items() if key != "preset"}
    if "preset" in options:
        how = preset(options["preset"])
    elif note:
        how = note.preprocessing
    elif given:
        how = Preprocessing()
    else:
        raise OptionError(
            f"nothing says how '{path}' becomes an input of the model",
            f"Give --preset ({', '.join(PRESETS)}), or --mean, --std and --scale, or a note next to the model.",
        )
    shape = inputs[0].shape or ()
    how = replace(how, dtype=str(inputs[0].dtype), **given).for_shape(shape)
    image = read_image(path)
    return Prepared(preprocess(image, how, shape), view(image, how, shape), how, note.labels if note else None)


def _numbers(key: str, value: Any) -> Any:
    """Numbers from "224", "224,224": mean and std are one or one per channel, size is a pair."""
    if key not in ("mean", "std", "size"):
        return value
    try:
        parts = tuple((int if key == "size" else float)(part) for part in str(value).split(","))
    except ValueError:
        raise OptionError(f"--{key} takes numbers separated by commas, not {value!r}") from None
    if key == "size":
        return parts * 2 if len(parts) == 1 else parts
    return parts[0] if len(parts) == 1 else parts


def labels(given: Path | None, noted: Path | None) -> list[str] | None:
    """Names of the classes: from the file that the user names, else from the note's if it is there."""
    from onnxplain.images import read_labels

    if given is not None:
        return read_labels(given)
    return read_labels(noted) if noted is not None and noted.is_file() else None


def note_labels(model: ox.Model) -> Path | None:
    """The labels file that a model's note names."""
    note = find_note(model.source.path, model.source.metadata)
    return note.labels if note else None


def note_bounds(model: ox.Model, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Bounds of a photo in the model's units, from its note, for rules that need them."""
    note = find_note(model.source.path, model.source.metadata)
    shape = model.inputs[0].shape if model.inputs else None
    if note is None or shape is None or len(shape) != 4:
        return {}
    return _bounds(note.preprocessing.for_shape(shape), method, options)


def _bounds(how: Preprocessing | None, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    needed = options.get("rule") == "z_box" or options.get("composite") == "epsilon_gamma_box"
    if how is None or method != "lrp" or not needed:
        return {}
    mean, std = (np.atleast_1d(np.asarray(v, np.float32)) for v in (how.mean, how.std))
    per_channel = (-1, 1, 1) if how.layout == "NCHW" else (1, 1, -1)
    bounds = {"low": ((0 - mean) / std).reshape(per_channel), "high": ((255 * how.scale - mean) / std).reshape(per_channel)}
    return {k: v for k, v in bounds.items() if k not in options}
