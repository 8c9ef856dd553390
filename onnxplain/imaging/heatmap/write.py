"""Pictures, arrays and HTML pages to files; a file is written completely or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from onnxplain.errors import OutputError
from onnxplain.storage.atomic import replacing

JPEG_OPTIONS = [cv2.IMWRITE_JPEG_QUALITY, 95]  # of 100
IMAGES = {".png": [], ".jpg": JPEG_OPTIONS, ".jpeg": JPEG_OPTIONS}  # file ending -> OpenCV's options
HTML_HINT = "Give tokens= or names=, or let the name end in .png."


def save(path: str | os.PathLike[str], content: npt.ArrayLike | str) -> None:
    """Write an RGB image (``.png``, ``.jpg``), any array (``.npy``) or an HTML page (``.html``).

    The file is written completely or not at all.

    Parameters
    ----------
    path
        The ending chooses the format. An existing file is replaced.
    content : ndarray of uint8, shape (H, W, 3)
        An RGB image; for ``.npy`` an array of numbers of any shape, for ``.html`` a str.

    Raises
    ------
    OutputError
        The ending is unknown or does not fit the content, or the file cannot be written.
    """
    path = Path(path)
    encoded = _page(path, content) if isinstance(content, str) else _encoded(path, np.asarray(content))
    with replacing(path) as temporary:
        temporary.write_bytes(encoded)


def _page(path: Path, text: str) -> bytes:
    if path.suffix.lower() != ".html":
        raise OutputError(f"cannot write '{path}': coloured text needs an HTML page", "Let the name end in .html.")
    return text.encode("utf-8", "backslashreplace")  # UTF-8 cannot encode lone surrogates


def _encoded(path: Path, array: npt.NDArray[Any]) -> bytes:
    ending = path.suffix.lower()
    if ending == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        return buffer.getvalue()
    if ending not in IMAGES:
        if ending == ".html":
            raise OutputError(f"cannot write '{path}': a page shows tokens or named features, not a picture", HTML_HINT)
        raise OutputError(f"cannot write '{path}': unknown ending {ending!r}", f"Known: {', '.join(IMAGES)}, .npy.")
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise OutputError(
            f"cannot write '{path}': a picture must be uint8 of shape (H, W, 3), not {array.dtype} {array.shape}"
        )
    try:
        done, encoded = cv2.imencode(ending, array[:, :, ::-1], IMAGES[ending])
    except cv2.error:
        done = False
    if not done:  # OpenCV 4 raises, OpenCV 5 returns False; after the checks above, only the size can be the cause
        height, width = array.shape[:2]
        raise OutputError(f"cannot write '{path}': {width} x {height} pixels are too many for {ending}")
    return encoded.tobytes()
