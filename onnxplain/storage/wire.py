"""Protobuf's wire format: the fields of a message in a file, found without reading their values.

protobuf itself copies whatever it parses and does not say where in a file it was, but large tensors are read once, or
referred to where they are. https://protobuf.dev/programming-guides/encoding describes the format.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedIOBase
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4, groups, are in no ONNX message
_FIXED_SIZES = {FIXED64: 8, FIXED32: 4}  # wire type -> bytes of a value
_VARINT_BITS = 64


class WireError(ValueError):
    """Bytes that are not a protobuf message."""


class Field(NamedTuple):
    """A field of a message, and where it is.

    Attributes
    ----------
    key
        Number and wire type of the field, as they are written.
    begin, start, end
        Offsets in the file, in bytes: of the key, of the value, and behind the value.
    descriptor
        The field in the message's definition; None if the definition has no field of this number.
    """

    key: int
    begin: int
    start: int
    end: int
    descriptor: FieldDescriptor | None

    @property
    def wire_type(self) -> int:
        """How the value is encoded: `VARINT`, `FIXED64`, `LENGTH` or `FIXED32`."""
        return self.key & 7

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return self.end - self.start

    @property
    def name(self) -> str:
        """Message and field, such as "onnx.GraphProto.node"; empty for a field that the definition does not have."""
        return self.descriptor.full_name if self.descriptor else ""

    @property
    def message(self) -> Descriptor | None:
        """Definition of the message that the field holds, if it holds one."""
        return self.descriptor.message_type if self.descriptor else None


def fields(file: BufferedIOBase, message: Descriptor, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message at ``start:end``, in the order of the file, whose position may change meanwhile.

    Parameters
    ----------
    file
        A seekable file.
    message
        Definition of the message, such as ``onnx.ModelProto.DESCRIPTOR``.
    start, end
        Offsets in the file, in bytes.

    Raises
    ------
    WireError
        The bytes are not a protobuf message, or end within a field.
    """
    while start < end:
        begin = file.seek(start)
        key = _read_varint(file)
        wire_type = key & 7
        if wire_type == VARINT:
            start = file.tell()
            _read_varint(file)
            stop = file.tell()
        elif wire_type in (LENGTH, *_FIXED_SIZES):
            size = _read_varint(file) if wire_type == LENGTH else _FIXED_SIZES[wire_type]
            start = file.tell()
            stop = start + size
        else:
            raise WireError(f"it has a field of wire type {wire_type}")
        if stop > end:
            raise WireError("it ends within a field")
        yield Field(key, begin, start, stop, message.fields_by_number.get(key >> 3))
        start = stop


def read_bytes(file: BufferedIOBase, start: int, end: int) -> bytes:
    """Read the bytes at ``start:end``.

    Raises
    ------
    WireError
        The file is shorter.
    """
    file.seek(start)
    content = file.read(end - start)
    if len(content) < end - start:
        raise WireError("it ends within a field")
    return content


def length_delimited(key: int, content: bytes) -> bytes:
    """Encode a field of wire type `LENGTH`: key, length and content."""
    return b"".join([_varint(key), _varint(len(content)), content])


def _read_varint(file: BufferedIOBase) -> int:
    """Read an integer of seven bits per byte, the lowest first; all bytes but the last have their highest bit set."""
    value = 0
    for shift in range(0, _VARINT_BITS, 7):
        byte = file.read(1)
        if not byte:
            raise WireError("it ends within a number")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise WireError(f"it has a number of more than {_VARINT_BITS} bits")


def _varint(value: int) -> bytes:
    """Encode an integer as `_read_varint` reads it."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])
