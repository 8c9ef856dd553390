#!/usr/bin/env python3
"""Measure how much of the score reaches the input: LRP by composite, and DeepLIFT, on real architectures.

LRP promises that relevances sum to the score. Biases keep their share, and some rules do not conserve, so the table has
the sum at the input in per cent of the score; no value is right or wrong. DeepLIFT promises that attributions sum to
the difference to the baseline; the table has the relative error of that sum, which should be rounding only.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures
import corpus
import minilm
import numpy as np
from rich.console import Console

import onnxplain as ox
from onnxplain.composites import COMPOSITES
from onnxplain.imaging.images import find_note, preprocess, read_image

MODELS = Path(__file__).parent.parent / "models"
BOUNDED = {"epsilon_gamma_box": {"low": -3.0, "high": 3.0}}
Inputs = Any


def lite0(_: Path) -> tuple[Path, Inputs]:
    """Return EfficientNet-Lite0 and the photo of the cat."""
    path = MODELS / "efficientnet_lite0.onnx"
    note, shape = find_note(str(path), {}), ox.load(path).inputs[0].shape
    assert note is not None
    return path, preprocess(read_image(MODELS / "cat.png"), note.preprocessing, shape or ())


def architecture(name: str) -> Callable[[Path], tuple[Path, Inputs]]:
    """Return an architecture of torchvision with random weights."""

    def make(cache: Path) -> tuple[Path, Inputs]:
        reference, path = cache / f"{name}.npz", cache / f"{name}.torchscript.onnx"
        if not reference.is_file():
            architectures.make_reference(name, reference)
        arrays = dict(np.load(reference))
        if not path.is_file():
            architectures.export(name, arrays, path, "torchscript", dynamic=True)
        return path, arrays["x"][:1]

    return make


def encoder(cache: Path) -> tuple[Path, Inputs]:
    """Return the sentence encoder and a sentence."""
    return minilm.export(cache), corpus.sentence()


NETS = {
    "EfficientNet-Lite0": lite0,
    "ResNet-50": architecture("resnet50"),
    "ViT-B/16": architecture("vit_b_16"),
    "MiniLM-L6": encoder,
}


def arrives(path: Path, x: Inputs, composite: str) -> str:
    """Return the sum of relevances at the input, in per cent of the score."""
    result = ox.explain(path, x, "lrp", composite=composite, **BOUNDED.get(composite, {}))
    total = sum(result[name].values.sum(dtype=np.float64) for name in result.names)
    return f"{total / result.score[0]:.1%}" if abs(total / result.score[0]) < 100 else f"{total / result.score[0]:.0e}"


def misses(path: Path, x: Inputs, rule: str) -> str:
    """Return the relative error of DeepLIFT's sum."""
    result = ox.explain(path, x, "deeplift", rule=rule)
    total = sum(result[name].values.sum(dtype=np.float64) for name in result.names)
    assert result.residual is not None
    return f"{abs(result.residual[0] / (total - result.residual[0])):.0e}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("build/conservation"), help="folder for models")
    cache = parser.parse_args().cache
    cache.mkdir(parents=True, exist_ok=True)
    progress = Console(stderr=True, log_path=False)
    nets = {}
    for name, make in NETS.items():
        progress.log(name)
        nets[name] = make(cache)
    lines = ["| | " + " | ".join(nets) + " |", "|---" * (len(nets) + 1) + "|"]
    for composite in COMPOSITES:
        progress.log(composite)
        cells = [arrives(*net, composite) for net in nets.values()]
        lines.append(f"| `lrp`, `{composite}` | " + " | ".join(cells) + " |")
    for rule in ("rescale", "reveal_cancel"):
        progress.log(rule)
        cells = [misses(*net, rule) for net in nets.values()]
        lines.append(f"| `deeplift`, `{rule}`: misses | " + " | ".join(cells) + " |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
