"""Options that the sessions of ONNX Runtime have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxplain.runtime import ort
from onnxplain.storage.tensors import LARGE_TENSOR

Level = ort.GraphOptimizationLevel


def session_options(level: Any) -> Any:
    """Make options for a session that rewrites graphs at a `Level`, and logs nothing.

    Memory patterns keep a second copy of the activations once a shape has been seen (twice the peak memory). Planning
    the reuse of memory takes time quadratic in the nodes (most of a load), and saves nothing that ONNX Runtime's arena
    does not save, too. Both are off.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4  # fatal errors; all others are raised as exceptions, too
    options.enable_mem_pattern = options.enable_mem_reuse = False
    return options


def save_rewritten(options: Any, path: Path) -> None:
    """Have a session write its graph, as ONNX Runtime has rewritten it, to ``path``.

    Tensors larger than `LARGE_TENSOR` go to ``NAME.data`` next to it.
    """
    options.optimized_model_filepath = str(path)
    external = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{external}_file_name", f"{path.name}.data")
    options.add_session_config_entry(f"{external}_min_size_in_bytes", str(LARGE_TENSOR))
