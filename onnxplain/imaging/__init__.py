"""Photos to arrays, and attributions to pictures.

The names here need no OpenCV. `onnxplain.imaging.images` and `onnxplain.imaging.heatmap` do: import them from there.
"""

from onnxplain.imaging.preprocessing import PRESETS, Note, Preprocessing, find_note, preset

__all__ = ["PRESETS", "Note", "Preprocessing", "find_note", "preset"]
