"""Tensors that lie where a provider calculates; exchanged with other libraries by DLPack, without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxplain.errors import InputError
from onnxplain.runtime import ort

Array = np.ndarray[Any, Any]
Device = tuple[str, int]  # "cpu" or "cuda", and which of them

_NAMES = {1: "cpu", 2: "cuda"}  # of DLPack's numbers
_LEGACY_STREAM = 1  # what is queued where the tensor was made comes first there; `Session` waits for all of it


@dataclass(frozen=True, eq=False)
class Tensor:
    """A contiguous tensor in a provider's memory, or some rows of one.

    Attributes
    ----------
    owner
        ONNX Runtime's OrtValue, which holds the memory.
    start
        Where in it this begins, in bytes.
    """

    owner: Any
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int = 0

    @classmethod
    def of(cls, x: Any) -> Tensor:
        """Take over what implements ``__dlpack__``; the memory is shared.

        Raises
        ------
        BufferError, RuntimeError
            ONNX Runtime cannot take it: it is not contiguous, or of a type that ONNX Runtime does not exchange.
        """
        on_gpu = x.__dlpack_device__()[0] == 2
        capsule = x.__dlpack__(stream=_LEGACY_STREAM) if on_gpu else x.__dlpack__()
        return cls._around(ort.OrtValue.from_dlpack(capsule))

    @classmethod
    def empty(cls, shape: Sequence[int], dtype: np.dtype[Any], device: Device) -> Tensor:
        """Memory for results."""
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
        """Where it lies."""
        kind, number = self.owner.__dlpack_device__()
        return _NAMES[kind], number

    @property
    def address(self) -> int:
        """Of its first element."""
        return int(self.owner.data_ptr()) + self.start

    def rows(self, part: slice) -> Tensor:
        """Rows along the first axis; the memory is shared."""
        row = self.size // self.shape[0] * self.dtype.itemsize
        return replace(self, shape=(part.stop - part.start, *self.shape[1:]), start=self.start + part.start * row)

    def numpy(self) -> Array:
        """All of the memory as an array; a copy unless it is the host's."""
        return np.asarray(self.owner.numpy())

    def __dlpack__(self, **options: Any) -> Any:
        return self.owner.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, number = self.owner.__dlpack_device__()
        return int(kind), int(number)


Given = Array | Tensor


def received(x: Any, name: str, gpu: bool) -> Given:
    """Take what a user gives for an input: an array on the host, sharing its memory where it can, or a tensor on a GPU.

    Parameters
    ----------
    gpu
        Whether tensors on GPU 0 are welcome: what takes them runs there.

    Raises
    ------
    InputError
        No regular array, or a tensor that its library does not hand over or nobody here takes.
    """
    if isinstance(x, np.ndarray) or not hasattr(x, "__dlpack_device__"):
        try:
            return np.asarray(x)
        except ValueError:
            raise InputError(f"what was given for input '{name}' is no regular array") from None
    try:
        kind, number = x.__dlpack_device__()
        if kind != 2:
            return np.from_dlpack(x)
        if gpu and number == 0:
            return Tensor.of(x)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        hint = "Give a contiguous tensor of a type that the model takes, such as x.detach().float().contiguous()."
        raise InputError(f"the tensor for input '{name}' cannot be taken over: {why}", hint) from None
    if gpu:
        what = f"the tensor for input '{name}' is on GPU {number}, and only those on GPU 0 can be taken over"
        raise InputError(what, "CUDA_VISIBLE_DEVICES says which one is GPU 0.")
    what = f"the tensor for input '{name}' is on GPU {number}, and the explainer runs elsewhere"
    raise InputError(what, "Copy it to the host first: x.cpu(). Or run on GPU 0: providers=['CUDAExecutionProvider'].")
