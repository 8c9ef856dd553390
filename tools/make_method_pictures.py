#!/usr/bin/env python3
"""Draw the pictures of docs/methods/: one photo explained by every method of a family.

    python -m tools.make_method_pictures [FAMILY ...] [-o FOLDER]

Heatmaps are scaled to their own strongest values. Some methods have options that suit this network (see VARIANTS).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import onnxplain as ox
from onnxplain.imaging import heatmap
from onnxplain.imaging.images import preprocess, read_image, view
from onnxplain.methods.spec import FAMILIES
from tools.make_gallery import BEFORE, MODEL, PREPROCESSING, ROOT, SHAPE, Array, caption, stacked

SIDE = 168  # pixels of one picture
COLUMNS = 5
QUALITY = 82  # of JPEG
BOUNDS = {"low": -127 / 128, "high": 128 / 128}  # of this network's input
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "internal_influence": {"internal_influence": {"at": BEFORE}},
    "conductance": {"conductance": {"at": BEFORE}},
    "guided_backprop": {"guided_backprop": {"clip": True}},
    "deconvnet": {"deconvnet": {"clip": True}},
    "rect_grad": {"rect_grad": {"clip": True}},
    "beta_smooth": {},  # no picture: this network has Clip where others have Relu
    "guided_grad_cam": {"guided_grad_cam": {"clip": True}},
    "lrp": {
        "lrp": {},
        "lrp epsilon_gamma_box": {"composite": "epsilon_gamma_box", **BOUNDS},
        "lrp alpha2_beta1": {"composite": "epsilon_alpha2_beta1"},
        "lrp rule=epsilon": {"rule": "epsilon"},
    },
    "deep_taylor": {"deep_taylor": BOUNDS},
    "deeplift": {"deeplift": {}, "deeplift reveal_cancel": {"rule": "reveal_cancel"}},
    "occlusion": {"occlusion": {"stride": 8}},
    "rise": {"rise": {"center": True}},
}


def tile(title: str, picture: Array) -> Array:
    """A small picture below its caption."""
    small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.concatenate([caption(title, SIDE), small])


def explained(method: str, photos: list[Array], **options: Any) -> Array:
    """The attribution of the first photo; the others are only there for methods that take features from them."""
    batch = photos if method == "feature_permutation" else photos[:1]
    x = np.concatenate([preprocess(photo, PREPROCESSING, SHAPE) for photo in batch])
    return ox.explain(MODEL, x, method, **options).values[0]


def family(name: str, photos: list[Array]) -> Array:
    """Rows of pictures: the photo, and its explanation by every method of a family."""
    seen = view(photos[0], PREPROCESSING, SHAPE)
    tiles = [tile("photo", seen)]
    for spec in ox.METHODS.values():
        for title, options in VARIANTS.get(spec.name, {spec.name: {}}).items() if spec.family == name else ():
            tiles.append(tile(title, heatmap.picture(explained(spec.name, photos, **options), seen)))
            print(title, flush=True)
    blank = np.full_like(tiles[0], 255)
    rows = [tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)]
    width = min(COLUMNS, len(tiles))
    return stacked([stacked([*row, *[blank] * (width - len(row))], 1) for row in rows], 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)}; default: all")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "methods", help="folder")
    arguments = parser.parse_args()
    photos = [read_image(ROOT / "models" / name) for name in ("cat.png", "coffee.png")]
    for name in arguments.names or FAMILIES:
        path = arguments.output / f"{name}.jpg"
        picture = cv2.cvtColor(family(name, photos), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        print(path)


if __name__ == "__main__":
    main()
