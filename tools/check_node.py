#!/usr/bin/env python3
"""Check that exported explainers give the same numbers in onnxruntime-node as the Python API.

Installs onnxruntime-node from the npm registry into a temporary folder (about 300 MB), exports explainers of the models
in models/, runs them in node on two samples with the targets "a class" and "predicted", and compares the attributions.
The exit status is 1 if any of them differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import onnxplain as ox
from onnxplain.imaging.images import find_note, preprocess, read_image

TOOLS = Path(__file__).resolve().parent
MODELS = TOOLS.parent / "models"
TOLERANCE = 1e-3  # relative, as for any two explanations that are said to agree
CASES = [
    ("digits_cnn", "gradient", {}),
    ("digits_cnn", "lrp", {}),
    ("digits_cnn", "integrated_gradients", {"steps": 8}),
    ("digits_cnn", "occlusion", {"window": 3}),
    ("efficientnet_lite0", "gradient", {}),
    ("efficientnet_lite0", "lrp", {}),
]
PHOTOS = {"digits_cnn": ("digit_3.png", 3), "efficientnet_lite0": ("cat.png", 285)}


def samples(name: str, model: ox.Model) -> tuple[np.ndarray, np.ndarray]:
    """Return a photo and its mirror image, and their targets: a class for the first, -1 (predicted) for the second."""
    photo, target = PHOTOS[name]
    note = find_note(MODELS / f"{name}.onnx", {})
    image = read_image(MODELS / photo)
    shape = model.inputs[0].shape
    views = [preprocess(view, note.preprocessing, shape) for view in (image, np.ascontiguousarray(image[:, ::-1]))]
    return np.concatenate(views), np.array([target, -1])


def export(folder: Path, name: str, method: str, options: dict) -> np.ndarray:
    """Write an explainer and the input files for node; return the Python API's results."""
    explainer = ox.Explainer(MODELS / f"{name}.onnx", method, providers=["CPUExecutionProvider"], **options)
    x, target = samples(name, explainer.model)
    stem = f"{name}-{method}"
    explainer.export(folder / f"{stem}.onnx")
    (folder / f"{stem}.input").write_bytes(x.tobytes())
    (folder / f"{stem}.json").write_text(json.dumps({"shape": x.shape, "target": target.tolist()}))
    predicted = explainer(x).target
    return explainer(x, np.where(target < 0, predicted, target)).values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--modules", type=Path, help="node_modules folder that has onnxruntime-node already")
    modules = parser.parse_args().modules
    for command in ("node", "npm"):
        if shutil.which(command) is None:
            sys.exit(f"{command} is not installed")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if modules is None:
            # The package's script after installation fetches CUDA libraries, which this check does not need.
            install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", "onnxruntime-node"]
            subprocess.run(install, cwd=folder, check=True)
            modules = folder / "node_modules"
        version = json.loads((modules / "onnxruntime-node" / "package.json").read_text())["version"]
        wanted = {f"{name}-{method}": export(folder, name, method, options) for name, method, options in CASES}
        environment = {**os.environ, "NODE_PATH": str(modules.resolve())}
        subprocess.run(["node", TOOLS / "check_node.cjs", *wanted], cwd=folder, env=environment, check=True)
        got = {stem: np.fromfile(folder / f"{stem}.bin", np.float32) for stem in wanted}
    columns = ("model", "method", "values", "relative error", "largest difference", "verdict")
    table = Table(*columns, title=f"onnxruntime-node {version}")
    failed = False
    for stem, expected in wanted.items():
        difference = got[stem].reshape(expected.shape) - expected
        error = np.linalg.norm(difference) / np.linalg.norm(expected)
        agrees = error <= TOLERANCE
        failed |= not agrees
        figures = str(expected.size), f"{error:.1e}", f"{np.abs(difference).max():.1e}"
        table.add_row(*stem.split("-"), *figures, "same" if agrees else "DIFFERS")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
