"""Weights that an explainer shares with its model: where they are in the model's files, and whether those changed.

ONNX refers to data in other files by name, offset and length. Such a file may hold more than data, so an explainer can
refer to the model's .onnx file itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from google.protobuf.descriptor import Descriptor

from onnxplain.errors import ModelError, OptionError, OutputError
from onnxplain.storage import wire
from onnxplain.storage.digests import bytes_of
from onnxplain.storage.tensors import LARGE_TENSOR, is_plain

Array = np.ndarray[Any, Any]
Files = dict[Path, list[tuple[int, int]]]  # file -> offset and length of each tensor in it

NOTE = "onnxplain.weights"  # metadata property of an explainer: JSON, name of a file -> its SHA-256

_FOLLOWED = {  # fields that lead to data of tensors whose bytes can be mapped into memory; other numbers are varints
    "onnx.ModelProto.graph",
    "onnx.ModelProto.functions",
    "onnx.FunctionProto.node",
    "onnx.GraphProto.node",
    "onnx.GraphProto.initializer",
    "onnx.NodeProto.attribute",
    "onnx.AttributeProto.t",
    "onnx.AttributeProto.g",
    "onnx.TensorProto.float_data",
    "onnx.TensorProto.double_data",
    "onnx.TensorProto.raw_data",
}

_LEAVE = "Leave share_weights= out to store them in the explainer."
_START = 64  # bytes that are compared first: only weights that begin alike are compared as a whole


class WeightLocation(NamedTuple):
    """Where a weight is: the path of a file relative to the explainer's folder, and the offset in bytes."""

    location: str
    offset: int


def files_of(model: Path | None, weights: Mapping[str, Array], explainer: Path) -> Files:
    """Find the tensors in the files of a model, and check that an explainer can refer to them.

    Parameters
    ----------
    model, weights
        ``path`` and ``weights`` of the model's `onnxplain.storage.reader.Source`.
    explainer
        The file to be written.

    Raises
    ------
    OptionError
        The model was not loaded from a file.
    OutputError
        The explainer would replace a file that it refers to, or one of the files is outside of the explainer's folder.
    ModelError
        The model's file is gone, or is not an ONNX model any more.
    """
    if model is None:
        raise OptionError("the model was not loaded from a file, so there are no weights to share", _LEAVE)
    try:
        with model.open("rb") as opened:
            tensors = {model.resolve(): tensors_in(opened)}
    except (OSError, wire.WireError) as error:
        raise ModelError(f"'{model}' has changed since it was loaded: {error}", "Load it again.") from None
    for array in weights.values():
        if isinstance(array, np.memmap):
            tensors.setdefault(Path(str(array.filename)), []).append((array.offset, array.nbytes))
    target = explainer.resolve()
    if target in tensors:
        raise OutputError(f"cannot write '{explainer}': it would replace weights it shares", "Choose another name.")
    for file in tensors:
        if not file.is_relative_to(target.parent):
            raise OutputError(
                f"'{explainer}' cannot share the weights in '{file}': ONNX allows no reference out of a file's folder",
                f"Write it into '{os.path.commonpath([file.parent for file in tensors])}'. {_LEAVE}",
            )
    return tensors


def places_of(constants: Mapping[str, Array], files: Files, folder: Path) -> dict[str, WeightLocation]:
    """Locate large constants in files; constants that are in none of the files are left out.

    The bytes of the constants are compared with those in the files, as they are now; names do not matter.

    Parameters
    ----------
    constants
        The constants of an explainer by name.
    files
        The result of `files_of`.
    folder
        The explainer's folder.

    Raises
    ------
    OptionError
        None of the large constants is in any of the files.
    """
    candidates: dict[tuple[int, bytes], list[tuple[Array, WeightLocation]]] = {}  # by size and first bytes
    for file, tensors in files.items():
        data, location = np.memmap(file, np.uint8, "r"), file.relative_to(folder.resolve()).as_posix()
        for offset, size in tensors:
            stored = data[offset : offset + size]
            key = (size, stored[:_START].tobytes())
            candidates.setdefault(key, []).append((stored, WeightLocation(location, offset)))
    places = {}
    large = {name: array for name, array in constants.items() if array.nbytes > LARGE_TENSOR and is_plain(array.dtype)}
    for name, array in large.items():
        content = bytes_of(array)
        alike = candidates.get((content.size, content[:_START].tobytes()), [])
        place = next((place for stored, place in alike if np.array_equal(stored, content)), None)
        if place:
            places[name] = place
    if large and not places:
        why = "the explainer needs all of them in another form than the model's, such as a wider type"
        raise OptionError(f"there are no weights to share: {why}", _LEAVE)
    return places


def note_of(places: Mapping[str, WeightLocation], folder: Path) -> str:
    """Write the SHA-256 of each file that an explainer in ``folder`` refers to, as JSON for `changed`."""
    return json.dumps({name: _digest(folder / name) for name in sorted({place.location for place in places.values()})})


def changed(note: str, names: Collection[str], folder: Path) -> list[str]:
    """Those of the files ``names`` in ``folder`` whose content has changed since `note_of` wrote ``note``."""
    return [name for name, digest in json.loads(note).items() if name in names and _digest(folder / name) != digest]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_in(file: BufferedIOBase) -> list[tuple[int, int]]:
    """Offset and length, in bytes, of the data of all tensors in a model's file.

    Raises
    ------
    WireError
        The file does not hold a ModelProto.
    """
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise wire.WireError("it is empty")
    return list(_tensors(file, onnx.ModelProto.DESCRIPTOR, 0, size))


def _tensors(file: BufferedIOBase, message: Descriptor, start: int, end: int) -> Iterator[tuple[int, int]]:
    for field in wire.fields(file, message, start, end):
        if field.name not in _FOLLOWED or field.wire_type != wire.LENGTH:
            continue
        if field.message:
            yield from _tensors(file, field.message, field.start, field.end)
        else:
            yield field.start, field.size
