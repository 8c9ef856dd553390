#!/usr/bin/env python3
"""Draw docs/gallery.jpg, the picture of the README: two photos, each explained by four methods."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

import onnxplain as ox
from onnxplain import heatmap
from onnxplain.images import find_note, preprocess, read_image, view

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "efficientnet_lite0.onnx"
PHOTOS = ("cat.png", "coffee.png")
METHODS = {
    "lrp": ("lrp", {}),
    "guided backprop": ("guided_backprop", {"clip": True}),
    "integrated gradients": ("integrated_gradients", {}),
    "occlusion": ("occlusion", {"stride": 8}),
}
GAP, CAPTION = 8, 28  # pixels


def caption(text: str, width: int) -> np.ndarray:
    strip = np.full((CAPTION, width, 3), 255, np.uint8)
    return cv2.putText(strip, text, (2, CAPTION - 9), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA)


def stacked(parts: list[np.ndarray], axis: int) -> np.ndarray:
    """Put pictures next to each other, with white between them."""
    shape = list(parts[0].shape)
    shape[axis] = GAP
    white = np.full(shape, 255, np.uint8)
    return np.concatenate([piece for part in parts for piece in (part, white)][:-1], axis)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "gallery.jpg", help="default: %(default)s")
    output = parser.parse_args().output
    model, note = ox.load(MODEL), find_note(MODEL, {})
    shape = model.inputs[0].shape
    photos = [read_image(MODEL.parent / name) for name in PHOTOS]
    x = np.concatenate([preprocess(photo, note.preprocessing, shape) for photo in photos])
    seen = [view(photo, note.preprocessing, shape) for photo in photos]
    columns = {"photo": seen}
    for title, (method, options) in METHODS.items():
        values = ox.explain(model, x, method, **options).values
        columns[title] = [heatmap.picture(v, photo) for v, photo in zip(values, seen, strict=True)]
    drawn = [np.concatenate([caption(title, len(seen[0][0])), stacked(rows, 0)]) for title, rows in columns.items()]
    heatmap.save(output, stacked(drawn, 1))
    print(output)


if __name__ == "__main__":
    main()
