"""Attributions as pictures and pages: pool, smooth and scale an array, colour it, lay it over a photo, write a file.

``values -> heatmap (H, W) in [-1, 1] -> render or overlay (uint8 RGB) -> save``; `picture` does the middle in one call.
`waveform`, `projections`, `montage`, `ranking` and `html` draw signals, points, volumes, tables and text.

Only this package, `onnxplain.images` and `onnxplain.fills` import OpenCV, once a picture is wanted.
"""

from onnxplain.heatmap.boxes import with_boxes
from onnxplain.heatmap.colors import COLORS
from onnxplain.heatmap.draw import bars, overlay, picture, render
from onnxplain.heatmap.reduce import POOLINGS, heatmap
from onnxplain.heatmap.signals import projections, waveform
from onnxplain.heatmap.tables import ranked, ranking, ranking_html
from onnxplain.heatmap.text import characters, html, page, pieces, terminal, visible
from onnxplain.heatmap.volumes import montage
from onnxplain.heatmap.write import save

__all__ = [
    "COLORS",
    "POOLINGS",
    "bars",
    "characters",
    "heatmap",
    "html",
    "montage",
    "overlay",
    "page",
    "picture",
    "pieces",
    "projections",
    "ranked",
    "ranking",
    "ranking_html",
    "render",
    "save",
    "terminal",
    "visible",
    "waveform",
    "with_boxes",
]
