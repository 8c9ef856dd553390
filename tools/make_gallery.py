#!/usr/bin/env python3
"""Draw the pictures in docs/: photos explained by several methods, and answers to questions.

``gallery``: a cat and a cup, each explained by four methods. ``gallery_questions``: why Egyptian cat rather than tiger
cat; why cat rather than espresso, for a picture with one of them in each half (the tool prints the share of positive
attribution in the cat's half, and of negative attribution in the other); and where the units of a late layer look that
carry most of the cat's score.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import onnxplain as ox
from onnxplain.imaging import heatmap
from onnxplain.imaging.images import find_note, preprocess, read_image, view

Array = np.ndarray[Any, Any]

ROOT = Path(__file__).resolve().parent.parent
MODEL = ox.load(ROOT / "models" / "efficientnet_lite0.onnx")
PREPROCESSING = find_note(ROOT / "models" / "efficientnet_lite0.onnx", {}).preprocessing
SHAPE = MODEL.inputs[0].shape
METHODS = {
    "lrp": ("lrp", {}),
    "guided backprop": ("guided_backprop", {"clip": True}),
    "integrated gradients": ("integrated_gradients", {}),
    "occlusion": ("occlusion", {"stride": 8}),
}
QUESTION_METHODS = {
    "lrp": ("lrp", {}),
    "Grad-CAM": ("grad_cam", {"relu": False}),
    "RISE": ("rise", {"center": True, "samples": 1000}),
    "LIME": ("lime", {}),
    "occlusion": ("occlusion", {"stride": 8}),
}
EGYPTIAN_CAT, TIGER_CAT, ESPRESSO = 285, 282, 967
HALVES = "cat or espresso?"
LAYER = "/_swish_1/Clip_output_0"
BEFORE = "/_blocks.15/_project_conv/Conv_output_0"
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


def explained(photo: Array, method: str, target: Any, **options: Any) -> Array:
    """Return the attribution of a photo, in the model's view of it."""
    return ox.explain(MODEL, preprocess(photo, PREPROCESSING, SHAPE), method, target=target, **options).values[0]


def titled(title: str, picture: Array) -> Array:
    """Return a picture below its caption."""
    return np.concatenate([caption(title, picture.shape[1]), picture])


def gallery(cat: Array, cup: Array) -> Array:
    """Draw two photos by four methods."""
    rows = []
    for photo in (cat, cup):
        drawn = [heatmap.picture(explained(photo, m, None, **options), photo) for m, options in METHODS.values()]
        rows.append([photo, *drawn])
    columns = zip(("photo", *METHODS), *rows, strict=True)
    return stacked([titled(title, stacked(pictures, 0)) for title, *pictures in columns], 1)


def compared(title: str, photo: Array, quantity: ox.quantities.Quantity) -> Array:
    """Draw a comparison of two classes by several methods."""
    pictures = [titled(title, photo)]
    for name, (method, options) in QUESTION_METHODS.items():
        values = explained(photo, method, quantity, **options)
        pictures.append(titled(name, heatmap.picture(values, photo)))
        if title != HALVES:
            continue
        middle = values.shape[-1] // 2
        left = np.maximum(values, 0)[..., :middle].sum() / np.maximum(values, 0).sum()
        right = np.minimum(values, 0)[..., middle:].sum() / min(np.minimum(values, 0).sum(), -1e-9)
        print(f"{title} {name}: {left:.0%} of what speaks for it is left, {right:.0%} of what speaks against it right")
    return stacked(pictures, 1)


def units(photo: Array, target: int, count: int) -> Array:
    """Draw the channels of the last feature map with the largest positive influence on a class.

    By LayerCAM at the layer before it: methods that keep positive parts only, such as lrp, draw all units alike.
    """
    found = ox.influence(MODEL, preprocess(photo, PREPROCESSING, SHAPE), LAYER, target, "gradient_x_input")
    pictures = [titled("units that speak for it", photo)]
    for unit in found.top(count, sign="positive"):
        values = explained(photo, "layer_cam", unit.quantity, at=BEFORE)
        pictures.append(titled(f"unit {unit.index}: {unit.influence:+.2f}", heatmap.picture(values, photo)))
    return stacked(pictures, 1)


def questions(cat: Array, cup: Array) -> Array:
    """Draw three rows of answers."""
    middle = slice(cat.shape[1] // 4, cat.shape[1] // 4 + cat.shape[1] // 2)
    both = np.concatenate([cat[:, middle], cup[:, middle]], axis=1)
    rows = [
        compared("Egyptian or tiger cat?", cat, ox.Difference(EGYPTIAN_CAT, TIGER_CAT)),
        compared(HALVES, both, ox.Difference(EGYPTIAN_CAT, ESPRESSO)),
        units(cat, EGYPTIAN_CAT, len(QUESTION_METHODS)),
    ]
    return stacked(rows, 0)


PICTURES = {"gallery": gallery, "gallery_questions": questions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PICTURES)}; default: all")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs", help="folder; default: %(default)s")
    arguments = parser.parse_args()
    photos = [view(read_image(ROOT / "models" / name), PREPROCESSING, SHAPE) for name in ("cat.png", "coffee.png")]
    for name in arguments.names or PICTURES:
        path = arguments.output / f"{name}.jpg"
        heatmap.save(path, PICTURES[name](*photos))
        print(path)


if __name__ == "__main__":
    main()
