"""Tensors in a provider's memory; exchanged with other libraries by DLPack, without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxplain.errors import InputError
from onnxplain.runtime import ort

Array = np.ndarray[Any, Any]
Device = tuple[str, int]  # "cpu" or "cuda", and its number

_NAMES = {1: "cpu", 2: "cuda"}  # DLPack's number of a device type -> ONNX Runtime's name
_LEGACY_STREAM = 1  # CUDA's default stream: work queued by the tensor's library comes first; `Session` waits for it


@dataclass(frozen=True, eq=False)
class Tensor:
    """A contiguous tensor in a provider's memory, or some rows of one.

    Attributes
    ----------
    owner
        ONNX Runtime's OrtValue, which holds the memory.
    dtype, shape
        Of the elements, and sizes of the axes.
    start
        Offset of the first element in the memory, in bytes.
    """

    owner: Any
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int = 0

    @classmethod
    def of(cls, x: Any) -> Tensor:
        """Wrap an object that implements ``__dlpack__``; the memory is shared.

        Raises
        ------
        BufferError, RuntimeError
            The object is not contiguous, or its dtype is none that ONNX Runtime exchanges.
        """
        on_gpu = x.__dlpack_device__()[0] == 2
        capsule = x.__dlpack__(stream=_LEGACY_STREAM) if on_gpu else x.__dlpack__()
        return cls._around(ort.OrtValue.from_dlpack(capsule))

    @classmethod
    def empty(cls, shape: Sequence[int], dtype: np.dtype[Any], device: Device) -> Tensor:
        """Allocate a tensor; its elements have no defined value."""
        return cls._around(ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype.type, *device))

    @classmethod
    def _around(cls, owner: Any) -> Tensor:
        kind = owner.data_type().removeprefix("tensor(").removesuffix(")")
        return cls(owner, np.dtype({"float": "float32", "double": "float64"}.get(kind, kind)), tuple(owner.shape()))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def device(self) -> Device:
        """The device whose memory holds the tensor."""
        kind, number = self.owner.__dlpack_device__()
        return _NAMES[kind], number

    @property
    def address(self) -> int:
        """Memory address of the first element."""
        return int(self.owner.data_ptr()) + self.start

    def rows(self, part: slice) -> Tensor:
        """Slice the first axis; the memory is shared."""
        row = self.size // self.shape[0] * self.dtype.itemsize
        return replace(self, shape=(part.stop - part.start, *self.shape[1:]), start=self.start + part.start * row)

    def numpy(self) -> Array:
        """Convert the owner's whole memory to an array: a copy, unless it is on the host."""
        return np.asarray(self.owner.numpy())

    def __dlpack__(self, **options: Any) -> Any:
        return self.owner.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, number = self.owner.__dlpack_device__()
        return int(kind), int(number)


AnyTensor = Array | Tensor  # on the host, or in memory of a provider


def received(x: Any, name: str, gpu: bool) -> AnyTensor:
    """Convert what a user passes for an input to an array on the host, or to a tensor on a GPU.

    Memory is shared where that is possible.

    Parameters
    ----------
    x
        An array, anything that numpy converts to one, or a tensor of a library that implements DLPack.
    name
        Name of the input, for error messages.
    gpu
        Whether the session runs on GPU 0, so that tensors there can be used.

    Raises
    ------
    InputError
        ``x`` is no regular array, cannot be exchanged by DLPack, or is on a GPU where the session does not run.
    """
    if isinstance(x, np.ndarray) or not hasattr(x, "__dlpack_device__"):
        try:
            return np.asarray(x)
        except ValueError:
            raise InputError(f"the value for input '{name}' is not a regular array") from None
    try:
        kind, number = x.__dlpack_device__()
        if kind != 2:
            return np.from_dlpack(x)
        if gpu and number == 0:
            return Tensor.of(x)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        hint = "Pass a contiguous tensor of the input's dtype, such as x.detach().float().contiguous()."
        raise InputError(f"the tensor for input '{name}' cannot be exchanged by DLPack: {why}", hint) from None
    if gpu:
        what = f"the tensor for input '{name}' is on GPU {number}; only tensors on GPU 0 can be used"
        raise InputError(what, "CUDA_VISIBLE_DEVICES decides which one is GPU 0.")
    what = f"the tensor for input '{name}' is on GPU {number}, and the explainer does not run there"
    raise InputError(what, "Copy it to the host first: x.cpu(). Or run on GPU 0: providers=['CUDAExecutionProvider'].")
