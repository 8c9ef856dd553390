"""Cache entries: files that hold models and a note, so that they need not be made again.

A file holds, in this order, the models' large weights, each where ONNX Runtime can map it into memory; the models,
whose tensors give the offsets of these weights; the note, in JSON; and the CRC32 of all that. Weights that the user's
own model holds are left out. An entry is named by a digest of everything that it depends on, so it is never out of
date; an entry that cannot be read is made again. Nothing in an entry is ever executed.
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

VARIABLE = "ONNXPLAIN_CACHE"  # environment variable: the folder, unless a caller names one
LIMIT = 4 << 30  # bytes of all entries in a folder; beyond that, the least recently used entries are removed
ENDING = ".onnxplain"  # of the names of entries

_SIZE, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")  # bytes of the note and the sizes of models; CRC32
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, struct.error, DecodeError, ModelError)


def folder_of(requested: str | os.PathLike[str] | None) -> Path | None:
    """Make the cache folder: the requested one, or the one that `VARIABLE` names; None if neither is given.

    Raises
    ------
    OutputError
        The folder cannot be made or written.
    """
    name = requested or os.environ.get(VARIABLE)
    if not name:
        return None
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot use '{folder}' as a cache: {error.strerror}", "Choose another folder.") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot use '{folder}' as a cache: no permission to write there", "Choose another folder.")
    return folder


def kept(path: Path, fetch: Callable[[], Made], make: Callable[[], Made], put: Callable[[Made], None]) -> Made:
    """Return an entry's content, made and stored first if there is no such entry or it cannot be read.

    Any number of processes may use the folder at the same time. A folder that cannot be written is a warning.

    Parameters
    ----------
    path
        The entry's file.
    fetch
        Reads the entry.
    make
        Makes the content anew.
    put
        Writes the content to the entry.
    """
    try:
        content = fetch()
        path.touch()
        return content
    except _UNREADABLE:
        made = make()
    try:
        put(made)
        _bound(path.parent, LIMIT)
    except OSError as error:
        why = getattr(error.__context__, "strerror", None) or error  # an OutputError would name the entry
        warnings.warn(f"the cache '{path.parent}' cannot be written: {why}", RuntimeWarning, stacklevel=1)
    return made


def write(path: Path, note: Note, models: Mapping[str, Source], user_weights: Weights) -> None:
    """Write an entry.

    Parameters
    ----------
    path
        The entry's file.
    note
        Anything that JSON can hold.
    models
        Models by name. Their messages are changed, so they cannot be used afterwards.
    user_weights
        Weights of the user's model by name, which `read` gets, too: they are not written.

    Raises
    ------
    OSError
        The folder cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        for model in models.values():
            for tensor in filter(is_external, model.proto.graph.initializer):
                name, array = tensor.name, model.weights[tensor.name]
                known = name in user_weights and _same(user_weights[name], array)
                tensor.CopyFrom(
                    stub(name, tensor.data_type, tensor.dims) if known else external(file, name, array, path.name)
                )
        written = {name: model.proto.SerializeToString() for name, model in models.items()}
        contents = json.dumps([note, {name: len(data) for name, data in written.items()}]).encode()
        file.writelines([*written.values(), contents, _SIZE.pack(len(contents))])
        file.flush()
        file.write(_CHECKSUM.pack(zlib.crc32(np.memmap(temporary, np.uint8, "r").data)))


def read(path: Path, user_weights: Weights) -> tuple[Note, dict[str, Source]]:
    """Read an entry.

    Parameters
    ----------
    path
        The entry's file.
    user_weights
        Weights of the user's model by name, as `write` got them.

    Returns
    -------
    note, models
        As they were written; the models' large weights are mapped into memory, or are those of ``user_weights``.

    Raises
    ------
    OSError, ValueError, KeyError, TypeError, struct.error, DecodeError, ModelError
        There is no such entry, or it is damaged; `kept` then makes it again.
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
        models[name] = Source(proto, {t.name: _array(t, whole, user_weights) for t in tensors}, path)
        start += size
    return note, models


def _array(tensor: onnx.TensorProto, whole: memoryview, user_weights: Weights) -> Array:
    """The data of a tensor: from the user's model if it is a stub, else from the entry."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if is_stub(tensor):
        return user_weights[tensor.name].astype(dtype, copy=False)
    offset, length = (int(e.value) for key in ("offset", "length") for e in tensor.external_data if e.key == key)
    return np.frombuffer(whole[offset : offset + length], dtype).reshape(tuple(tensor.dims))


def _same(weight: Array, array: Array) -> bool:
    """Whether an array equals a weight of the user's model, converted to the array's dtype."""
    if weight is array:
        return True
    return weight.shape == array.shape and np.array_equal(
        bytes_of(weight.astype(array.dtype, copy=False)), bytes_of(array)
    )


def _bound(folder: Path, limit: int) -> None:
    """Remove the least recently used entries, and unfinished files of other processes, beyond ``limit`` bytes."""
    files = []
    for path in folder.glob(f"*{ENDING}"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            files.append((status.st_mtime_ns, status.st_size, path))
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > limit:
            path.unlink(missing_ok=True)
