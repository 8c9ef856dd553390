"""Attributions as pictures and HTML pages.

For images: ``values -> heatmap -> render or overlay -> save``. `heatmap` pools, smooths and scales an attribution to an
array (H, W) in [-1, 1]; `render` and `overlay` colour it, as uint8 RGB; `picture` does both in one call. `waveform`,
`projections`, `montage`, `ranking` and `html` draw signals, point sets, volumes, tables and text.

Only `onnxplain.imaging` and `onnxplain.distributions.fills` import OpenCV, and only when a picture is drawn.
"""

from onnxplain.imaging.heatmap.boxes import with_boxes
from onnxplain.imaging.heatmap.colors import COLORS
from onnxplain.imaging.heatmap.draw import bars, overlay, picture, render
from onnxplain.imaging.heatmap.reduce import POOLINGS, heatmap
from onnxplain.imaging.heatmap.signals import projections, waveform
from onnxplain.imaging.heatmap.tables import ranked, ranking, ranking_html
from onnxplain.imaging.heatmap.text import characters, html, page, pieces, terminal, visible
from onnxplain.imaging.heatmap.volumes import montage
from onnxplain.imaging.heatmap.write import save

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
