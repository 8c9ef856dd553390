"""Photos to model inputs: read an image file, resize it, scale its pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from onnxplain.errors import InputError
from onnxplain.imaging.preprocessing import PRESETS, Note, Preprocessing, Shape, find_note, preset

__all__ = [
    "PRESETS",
    "Note",
    "Preprocessing",
    "find_note",
    "preprocess",
    "preset",
    "read_image",
    "read_labels",
    "view",
]

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]
Filter = Callable[[Floats], Floats]


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read an image file as upright RGB with 8 bits per channel.

    The EXIF orientation is applied, 16-bit channels are reduced to 8 bits, greyscale becomes RGB, and transparent
    pixels are blended with white.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)

    Raises
    ------
    InputError
        The file does not exist, or OpenCV cannot read it as an image.
    """
    data = np.frombuffer(_read(path), np.uint8)
    jpeg = data[:2].tobytes() == b"\xff\xd8"
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
        # IMREAD_COLOR drops transparency, so decode again; but not JPEG, which has none.
        whole = None if jpeg else cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error:  # an empty file, or more pixels than OpenCV reads
        image = None
    if image is None:
        raise InputError(f"'{path}' is not an image that can be read", "PNG, JPEG, WebP, TIFF and BMP can.")
    if whole is not None and whole.ndim == 3 and whole.shape[2] == 4:
        pixels = whole / (257 if whole.dtype == np.uint16 else 1)  # 65535 / 257 = 255
        alpha = pixels[:, :, 3:] / 255
        image = np.rint(pixels[:, :, :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.ascontiguousarray(image[:, :, ::-1], np.uint8)


def read_labels(path: str | os.PathLike[str]) -> list[str]:
    """Read a model's class names from a UTF-8 text file: line i, counted from zero, names class i.

    Raises
    ------
    InputError
        The file cannot be read, or is not UTF-8.
    """
    try:
        return [line.strip() for line in _read(path).decode("utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError:
        raise InputError(f"'{path}' is not a text file in UTF-8") from None


def preprocess(image: Image, preprocessing: Preprocessing, shape: Shape) -> npt.NDArray[Any]:
    """Turn a photo into a model input: ``(pixel * scale - mean) / std`` of the pixels of `view`.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        The photo, RGB.
    preprocessing
        Its fields that are None are derived from ``shape``.
    shape
        Shape of the model's input (see `Preprocessing.for_shape`).

    Returns
    -------
    ndarray of shape (1, C, H, W) or (1, H, W, C)
        Of ``preprocessing.dtype``.

    Raises
    ------
    InputError
        The image is not uint8 of shape (H, W, 3).
    OptionError
        The preprocessing does not fit the shape.
    """
    how = preprocessing.for_shape(shape)
    pixels = view(image, how, shape)
    channels = {"RGB": pixels, "BGR": pixels[:, :, ::-1], "GRAY": pixels[:, :, :1]}[how.color or "RGB"]
    values = (channels * how.scale - np.asarray(how.mean)) / np.asarray(how.std)
    if how.dtype == "uint8":
        values = np.clip(np.rint(values), 0, 255)
    if how.layout == "NCHW":
        values = np.moveaxis(values, 2, 0)
    return np.ascontiguousarray(values[None], how.dtype)


def view(image: Image, preprocessing: Preprocessing, shape: Shape) -> Image:
    """Return the photo as the model sees it, before scaling: resized, cropped or padded, grey for a grey input.

    Attributions of the model's input align with this image pixel by pixel.

    Parameters
    ----------
    image, preprocessing, shape
        As in `preprocess`.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        RGB, in the size of the model's input.

    Raises
    ------
    InputError, OptionError
        As in `preprocess`.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f"a photo must be uint8 of shape (H, W, 3), not {image.dtype} of shape {image.shape}")
    how = preprocessing.for_shape(shape)
    assert how.size is not None
    seen = _fitted(image, how.size, how)
    if how.color == "GRAY":
        seen = np.asarray(cv2.cvtColor(cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
    return seen


def _fitted(image: Image, size: tuple[int, int], how: Preprocessing) -> Image:
    (height, width), sides = size, image.shape[:2]
    if how.resize == "stretch":
        return _resized(image, size, how)
    if how.resize == "pad":
        factor = min(height / sides[0], width / sides[1])
        inner = max(1, round(sides[0] * factor)), max(1, round(sides[1] * factor))
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        seen = np.full((height, width, 3), how.fill, np.uint8)
        seen[top : top + inner[0], left : left + inner[1]] = _resized(image, inner, how)
        return seen
    factor = max(round(height / how.crop) / sides[0], round(width / how.crop) / sides[1])
    # Truncated like torchvision's Resize; rounded to 6 digits first, so that 255.9999999 counts as 256.
    outer = int(round(sides[0] * factor, 6)), int(round(sides[1] * factor, 6))
    top, left = round((outer[0] - height) / 2), round((outer[1] - width) / 2)
    return _resized(image, outer, how)[top : top + height, left : left + width]


def _resized(image: Image, size: tuple[int, int], how: Preprocessing) -> Image:
    if image.shape[:2] == size:
        return image
    if how.antialias and how.interpolation in _FILTERS:
        rows = _filtered(image.swapaxes(0, 1), size[1], *_FILTERS[how.interpolation]).swapaxes(0, 1)
        return _filtered(rows, size[0], *_FILTERS[how.interpolation])
    code = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}[how.interpolation]
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=code), np.uint8)


def _filtered(image: Image, count: int, radius: int, weight: Filter) -> Image:
    """Resample axis 0 to ``count`` rows, with a filter that widens as the image shrinks and with Pillow's rounding.

    ``weight`` is the filter's kernel, which is zero beyond ``radius`` (both in pixels, of the output when shrinking).
    """
    scale = len(image) / count
    width = max(scale, 1.0)
    out = np.empty((count, *image.shape[1:]), np.uint8)
    for i in range(count):
        centre = (i + 0.5) * scale
        first = max(int(centre - radius * width + 0.5), 0)
        last = min(int(centre + radius * width + 0.5), len(image))
        weights = weight((np.arange(first, last) + 0.5 - centre) / width)
        row = np.tensordot((weights / weights.sum()).astype(np.float32), image[first:last], axes=1)
        out[i] = np.clip(np.floor(row + 0.5), 0, 255)
    return out


def _triangle(x: Floats) -> Floats:
    return np.asarray(np.maximum(1 - np.abs(x), 0))


def _keys(x: Floats) -> Floats:
    """Cubic convolution kernel of Keys (1981) with a = -1/2, as in Pillow."""
    x = np.minimum(np.abs(x), 2)
    return np.asarray(np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2))


_FILTERS: Mapping[str, tuple[int, Filter]] = {"linear": (1, _triangle), "cubic": (2, _keys)}  # radius, kernel


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror or error}") from None
