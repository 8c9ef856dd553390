"""Weights that stay in the model's own files: where they lie there, and whether these files are still what they were.

ONNX refers to data in other files by name, offset and length. Nothing says that such a file holds only data, so the
model's .onnx file itself will do.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onnxplain.errors import ModelError, OptionError, OutputError
from onnxplain.storage.tensors import LARGE_TENSOR, is_plain

Array = np.ndarray[Any, Any]
Files = dict[Path, list[tuple[int, int]]]  # file -> offset and length of each tensor in it

NOTE = "onnxplain.weights"  # metadata property: JSON, name of a file -> its SHA-256

_LEAVE = "Leave share_weights= out to store them in the explainer."
_START = 64  # bytes by which weights are told apart before all of their bytes are compared


class WeightLocation(NamedTuple):
    """Where a weight lies: the name of a file, seen from the explainer's folder, and the offset in it."""

    location: str
    offset: int


def files_of(model: Path | None, weights: Mapping[str, Array], explainer: Path) -> Files:
    """Find the tensors in the files of a model, and check that an explainer can refer to them.

    Parameters
    ----------
    model, weights
        See `onnxplain.storage.reader.Source`.
    explainer
        The file to be written.

    Raises
    ------
    OptionError
        The model has no file.
    OutputError
        The explainer would replace a file that it refers to, or must not refer to it.
    ModelError
        The file is not there any more, or is not what was read.
    """
    if model is None:
        raise OptionError("the model was not loaded from a file, so there are no weights to share", _LEAVE)
    try:
        data = np.memmap(model, np.uint8, "r").data
        files = {model.resolve(): tensors_in(data)}
    except (OSError, ValueError, IndexError) as error:
        raise ModelError(f"'{model}' has changed since it was loaded: {error}", "Load it again.") from None
    for array in weights.values():
        if isinstance(array, np.memmap):
            files.setdefault(Path(str(array.filename)), []).append((array.offset, array.nbytes))
    target = explainer.resolve()
    if target in files:
        raise OutputError(f"cannot write '{explainer}': it would replace weights it shares", "Choose another name.")
    for file in files:
        if not file.is_relative_to(target.parent):
            raise OutputError(
                f"'{explainer}' cannot share the weights in '{file}': ONNX allows no reference out of a file's folder",
                f"Write it into '{os.path.commonpath([file.parent for file in files])}'. {_LEAVE}",
            )
    return files


def places_of(constants: Mapping[str, Array], files: Files, folder: Path) -> dict[str, WeightLocation]:
    """Where large constants lie in files, of those that do; ``folder`` is the explainer's.

    They are compared, byte by byte, with what the files hold now, whatever the names.

    Raises
    ------
    OptionError
        None of the large constants is in any of the files.
    """
    found: dict[tuple[int, bytes], list[tuple[Array, WeightLocation]]] = {}
    for file, tensors in files.items():
        data, location = np.memmap(file, np.uint8, "r"), file.relative_to(folder.resolve()).as_posix()
        for offset, size in tensors:
            stored = data[offset : offset + size]
            found.setdefault((size, stored[:_START].tobytes()), []).append((stored, WeightLocation(location, offset)))
    places = {}
    large = {name: array for name, array in constants.items() if array.nbytes > LARGE_TENSOR and is_plain(array.dtype)}
    for name, array in large.items():
        own = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        alike = found.get((own.size, own[:_START].tobytes()), [])
        place = next((place for stored, place in alike if np.array_equal(stored, own)), None)
        if place:
            places[name] = place
    if large and not places:
        why = "the explainer needs all of them in another form than the model's, such as a wider type"
        raise OptionError(f"there are no weights to share: {why}", _LEAVE)
    return places


def note_of(places: Mapping[str, WeightLocation], folder: Path) -> str:
    """The digests of all files that are referred to, as `changed` reads them."""
    return json.dumps({name: _digest(folder / name) for name in sorted({place.location for place in places.values()})})


def changed(note: str, names: Collection[str], folder: Path) -> list[str]:
    """The files, of those with these names, that are not what they were when a note was written."""
    return [name for name, digest in json.loads(note).items() if name in names and _digest(folder / name) != digest]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_in(model: memoryview) -> list[tuple[int, int]]:
    """Offset and length of the bytes of all tensors in a model, which is in protobuf's wire format."""
    return list(_tensors(model, 0, len(model), _MODEL))


# The fields of ONNX's messages that lead to the bytes of tensors: float_data, raw_data and double_data.
_TENSOR: dict[int, Any] = {4: None, 9: None, 10: None}
_GRAPH: dict[int, Any] = {5: _TENSOR}
_NODE = {5: {5: _TENSOR, 6: _GRAPH}}
_GRAPH[1] = _NODE
_MODEL = {7: _GRAPH, 25: {7: _NODE}}


def _tensors(data: memoryview, start: int, end: int, fields: Mapping[int, Any]) -> Iterator[tuple[int, int]]:
    while start < end:
        key, start = _number(data, start)
        if key & 7 == 2:  # so many bytes
            size, start = _number(data, start)
            inner = fields.get(key >> 3, {})
            if inner is None:
                yield start, size
            elif inner:
                yield from _tensors(data, start, start + size, inner)
            start += size
        elif key & 7 == 0:
            _, start = _number(data, start)
        else:
            start += 8 if key & 7 == 1 else 4


def _number(data: memoryview, start: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where it ends."""
    number = shift = 0
    while data[start] > 127:
        number |= (data[start] & 127) << shift
        start, shift = start + 1, shift + 7
    return number | data[start] << shift, start + 1
