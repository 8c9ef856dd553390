"""Entries of a folder that keeps what takes long to make: models with a note, one file each.

A file holds the models' large weights, each where ONNX Runtime can map it into memory; the models, whose tensors say
where; the note, in JSON; and CRC32 of all that. Weights that the user's own model holds are left out. The name of an
entry is a digest of everything that it depends on, so it never is out of date; one that cannot be read is made again.
Nothing in it is ever executed.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from onnxplain.errors import ModelError, OutputError
from onnxplain.storage.atomic import replacing
from onnxplain.storage.digests import bytes_of
from onnxplain.storage.reader import Source, Weights
from onnxplain.storage.tensors import is_external, is_stub, stub
from onnxplain.storage.writer import external

Array = np.ndarray[Any, Any]
Note = dict[str, Any]
Made = TypeVar("Made")

VARIABLE = "ONNXPLAIN_CACHE"  # names the folder where nobody else does
LIMIT = 4 << 30  # bytes that a folder holds; beyond, the entries used least recently go
ENDING = ".onnxplain"

_SIZE, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, struct.error, DecodeError, ModelError)


def folder_of(asked: str | os.PathLike[str] | None) -> Path | None:
    """The folder asked for here or in the environment, ready to be written; None: nothing is kept.

    Raises
    ------
    OutputError
        It cannot be made or written.
    """
    name = asked or os.environ.get(VARIABLE)
    if not name:
        return None
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot keep anything in '{folder}': {error.strerror}", "Choose another folder.") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot keep anything in '{folder}': no permission", "Choose another folder.")
    return folder


def kept(path: Path, fetch: Callable[[], Made], make: Callable[[], Made], put: Callable[[Made], None]) -> Made:
    """What ``fetch()`` finds in an entry; where that fails, what ``make()`` returns, which ``put`` writes to it.

    Any number of processes may use the folder at the same time.
    """
    try:
        found = fetch()
        path.touch()
        return found
    except _UNREADABLE:
        made = make()
    try:
        put(made)
        _bound(path.parent, LIMIT)
    except OSError as error:
        why = getattr(error.__context__, "strerror", None) or error  # an OutputError names the entry, too: one of many
        warnings.warn(f"nothing is kept in '{path.parent}': {why}", RuntimeWarning, stacklevel=1)
    return made


def write(path: Path, note: Note, models: Mapping[str, Source], own: Weights) -> None:
    """Write an entry.

    Parameters
    ----------
    note
        Anything that JSON can hold.
    models
        By name; they are used up.
    own
        Weights that whoever reads the entry has.

    Raises
    ------
    OSError
        The folder cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        for model in models.values():
            for tensor in filter(is_external, model.proto.graph.initializer):
                name, array = tensor.name, model.weights[tensor.name]
                known = name in own and _same(own[name], array)
                tensor.CopyFrom(
                    stub(name, tensor.data_type, tensor.dims) if known else external(file, name, array, path.name)
                )
        written = {name: model.proto.SerializeToString() for name, model in models.items()}
        contents = json.dumps([note, {name: len(data) for name, data in written.items()}]).encode()
        file.writelines([*written.values(), contents, _SIZE.pack(len(contents))])
        file.flush()
        file.write(_CHECKSUM.pack(zlib.crc32(np.memmap(temporary, np.uint8, "r").data)))


def read(path: Path, own: Weights) -> tuple[Note, dict[str, Source]]:
    """Read what `write` has written.

    Raises
    ------
    Exception
        One of those after which `kept` makes the entry again.
    """
    whole = np.memmap(path, np.uint8, "r").data
    end = len(whole) - _CHECKSUM.size
    if _CHECKSUM.unpack(whole[end:]) != (zlib.crc32(whole[:end]),):
        raise ValueError("damaged")
    end -= _SIZE.size
    start = end - _SIZE.unpack_from(whole, end)[0]
    note, sizes = json.loads(bytes(whole[start:end]))
    start -= sum(sizes.values())
    models = {}
    for name, size in sizes.items():
        proto = onnx.ModelProto.FromString(bytes(whole[start : start + size]))
        tensors = filter(is_external, proto.graph.initializer)
        models[name] = Source(proto, {t.name: _array(t, whole, own) for t in tensors}, path)
        start += size
    return note, models


def _array(tensor: onnx.TensorProto, whole: memoryview, own: Weights) -> Array:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if is_stub(tensor):
        return own[tensor.name].astype(dtype, copy=False)
    offset, length = (int(e.value) for key in ("offset", "length") for e in tensor.external_data if e.key == key)
    return np.frombuffer(whole[offset : offset + length], dtype).reshape(tuple(tensor.dims))


def _same(own: Array, array: Array) -> bool:
    """Whether a weight is one of the user's, perhaps in another precision."""
    if own is array:
        return True
    return own.shape == array.shape and np.array_equal(bytes_of(own.astype(array.dtype, copy=False)), bytes_of(array))


def _bound(folder: Path, limit: int) -> None:
    """Remove the entries used least recently, those that other processes left unfinished included."""
    found = []
    for path in folder.glob(f"*{ENDING}"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    total = 0
    for _, size, path in sorted(found, reverse=True):
        total += size
        if total > limit:
            path.unlink(missing_ok=True)
