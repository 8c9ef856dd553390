"""Attributions as pictures: pool, smooth and normalise an array, colour it, lay it over a photo, write a file.

``values -> heatmap (H, W) in [-1, 1] -> render or overlay (uint8 RGB) -> save``; `picture` does the middle in one call.

Only this package (and `onnxplain.images`) imports OpenCV, and only this package imports Numba. Nothing imports it
before a picture is wanted.
"""

from onnxplain.heatmap.colors import COLORS
from onnxplain.heatmap.draw import bars, overlay, picture, render
from onnxplain.heatmap.reduce import POOLINGS, heatmap
from onnxplain.heatmap.write import save

__all__ = ["COLORS", "POOLINGS", "bars", "heatmap", "overlay", "picture", "render", "save"]
