"""Shared parts of the tools that rebuild models/: the command line, the export, and atomic writing of files."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # make_photos needs neither
    import onnx
    import torch

NOTE = "onnxplain.preprocessing"


@contextlib.contextmanager
def needing(packages: str) -> Iterator[None]:
    """Exit with installation advice if an import fails; --help works without the packages."""
    try:
        yield
    except ImportError as error:
        sys.exit(f"{error}\nThis tool needs: pip install {packages}")


def output_folder(description: str | None, packages: str) -> Path:
    """Parse the command line that all these tools share; return the folder to write into."""
    parser = argparse.ArgumentParser(description=description, epilog=f"This tool needs: pip install {packages}")
    default = Path(__file__).resolve().parent.parent / "models"
    parser.add_argument("-o", "--output", type=Path, default=default, help="folder to write into (default: models/)")
    folder: Path = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write(path: Path, content: bytes) -> None:
    """Write a file atomically and print its sha256."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        partial = Path(folder, path.name)
        partial.write_bytes(content)
        os.replace(partial, path)
    print(hashlib.sha256(content).hexdigest(), path.name)


def export(net: torch.nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    """Export a network from ``image`` to ``logits`` with a free batch axis, batch normalisation folded."""
    import onnx
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, but its graphs are the plainer ones
        torch.onnx.export(
            net.eval(),
            (example,),
            file,
            dynamo=False,
            opset_version=17,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )
    return onnx.load_from_string(file.getvalue())


def write_model(path: Path, model: onnx.ModelProto, description: str, note: dict[str, Any]) -> None:
    """Check and write a model, with the note on preprocessing in its metadata and as a file next to it."""
    import onnx

    model.doc_string = description
    onnx.helper.set_model_props(model, {NOTE: json.dumps(note)})
    onnx.checker.check_model(model, full_check=True)
    write(path, model.SerializeToString(deterministic=True))
    write(path.with_suffix(".preprocessing.json"), (json.dumps(note, indent=2) + "\n").encode())
