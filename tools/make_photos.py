#!/usr/bin/env python3
"""Copy the sample photos models/cat.png and models/coffee.png out of scikit-image, byte for byte."""

from __future__ import annotations

import importlib.resources

from artifacts import needing, output_folder, write

PACKAGES = "scikit-image"
PHOTOS = {"cat.png": "chelsea.png", "coffee.png": "coffee.png"}  # both CC0


def main() -> None:
    folder = output_folder(__doc__, PACKAGES)
    with needing(PACKAGES):
        data = importlib.resources.files("skimage.data")
    for name, source in PHOTOS.items():
        write(folder / name, data.joinpath(source).read_bytes())


if __name__ == "__main__":
    main()
