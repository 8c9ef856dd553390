"""Canonical graphs kept in a folder, because large models take seconds to get there.

An entry holds what the model's own file does not: the graph, and those weights that canonization changed. Its name is a
digest of everything that the graph depends on, and of this package's code, so entries never are out of date; the zip
format's checksums find damage. An entry that cannot be read is made again. Nothing in it is ever executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError

from onnxplain.canonize.canonical import Canonical
from onnxplain.errors import OutputError
from onnxplain.files import replacing
from onnxplain.ir import Graph
from onnxplain.reader import Source, to_graph
from onnxplain.tensors import LARGE, is_plain, stub
from onnxplain.writer import to_proto, value_proto

Array = np.ndarray[Any, Any]
Sizes = Mapping[str, int]

VARIABLE = "ONNXPLAIN_CACHE"  # names the folder where nobody else does
LIMIT = 4 << 30  # bytes that a folder holds; beyond, the entries used least recently go
_ENDING = ".onnxplain"
_NOTE = "onnxplain.canonical"
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, DecodeError)


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


def cached(folder: Path, source: Source, sizes: Sizes, make: Callable[[Source, Sizes], Canonical]) -> Canonical:
    """What ``make(source, sizes)`` returned before, if the folder has it; else what it returns now, which is kept.

    Any number of processes may use the folder at the same time.
    """
    path = folder / f"{_digest(source, sizes)}{_ENDING}"
    try:
        canonical = _read(path, source)
        path.touch()
        return canonical
    except _UNREADABLE:
        canonical = make(source, sizes)
    try:
        _write(path, canonical, source)
        _bound(folder, LIMIT)
    except OSError as error:
        warnings.warn(f"the canonical model is not kept: {error}", RuntimeWarning, stacklevel=2)
    return canonical


def _digest(source: Source, sizes: Sizes) -> str:
    digest = hashlib.sha256(_software())
    digest.update(json.dumps(sorted(sizes.items())).encode())
    digest.update(source.proto.SerializeToString(deterministic=True))
    for name, array in sorted(source.weights.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(_bytes(array).data)
    return digest.hexdigest()


@cache
def _software() -> bytes:
    """The versions of what canonizes; of this package, its code, which tells more than a number."""
    versions = [onnx.__version__, ort.__version__, np.__version__, platform.machine()]
    root = Path(__file__).parent.parent
    return json.dumps([*versions, *(path.read_text("utf-8") for path in sorted(root.rglob("*.py")))]).encode()


def _bytes(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _write(path: Path, canonical: Canonical, source: Source) -> None:
    graph = canonical.graph
    large = {n: a for n, a in graph.constants.items() if a.nbytes > LARGE and is_plain(a.dtype)}
    kept = [name for name, array in large.items() if not _in_file(source, name, array)]
    model = to_proto(graph.replace(constants={n: a for n, a in graph.constants.items() if n not in large}))
    _declare(model.graph, graph)
    for name, array in large.items():
        data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.initializer.append(stub(name, data_type, array.shape))
    note = {"fixed_batch": canonical.fixed_batch, "changes": canonical.changes, "labels": canonical.labels}
    model.metadata_props.add(key=_NOTE, value=json.dumps({**note, "kept": kept}))
    arrays = {f"weight{k}": _bytes(large[name]) for k, name in enumerate(kept)}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, model=np.frombuffer(model.SerializeToString(), np.uint8), **arrays)


def _in_file(source: Source, name: str, array: Array) -> bool:
    """Whether a weight is one of the model's own, perhaps in another precision."""
    own = source.weights.get(name)
    if own is None or own is array:
        return own is not None
    return own.shape == array.shape and np.array_equal(_bytes(own.astype(array.dtype)), _bytes(array))


def _declare(proto: onnx.GraphProto, graph: Graph) -> None:
    """Declare all values of a graph and of its bodies."""
    proto.value_info.extend(map(value_proto, graph.values.values()))
    for node, written in zip(graph.nodes, proto.node, strict=True):
        for attribute in written.attribute:
            if attribute.HasField("g"):
                _declare(attribute.g, node.attrs[attribute.name])


def _read(path: Path, source: Source) -> Canonical:
    with np.load(path, allow_pickle=False) as entry:
        model = onnx.ModelProto.FromString(entry["model"].tobytes())
        note = json.loads(next(p.value for p in model.metadata_props if p.key == _NOTE))
        arrays = {name: entry[f"weight{k}"] for k, name in enumerate(note["kept"])}
    weights = {}
    for tensor in model.graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if tensor.name in arrays:
            weights[tensor.name] = arrays[tensor.name].view(dtype).reshape(tuple(tensor.dims))
        elif tensor.name in source.weights:
            weights[tensor.name] = source.weights[tensor.name].astype(dtype, copy=False)
    labels = {name: tuple(names) for name, names in note["labels"].items()}
    return Canonical(to_graph(model, weights), note["fixed_batch"], tuple(note["changes"]), labels)


def _bound(folder: Path, limit: int) -> None:
    """Remove the entries used least recently, those that other processes left unfinished included."""
    found = []
    for path in folder.glob(f"*{_ENDING}"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    total = 0
    for _, size, path in sorted(found, reverse=True):
        total += size
        if total > limit:
            path.unlink(missing_ok=True)
