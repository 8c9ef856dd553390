"""The explained networks by name, and inputs for them; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MODELS = Path(__file__).parents[2] / "models"
TOKENS, FRAMES, BANDS = 128, 100, 80


@dataclass(frozen=True)
class Net:
    """A network.

    Attributes
    ----------
    title
        Its name in tables.
    kind
        The kind of its input: "image", "tokens" or "sequence".
    layer
        The module with the last feature map, for Grad-CAM; "<" in front: the module's input.
    relu
        Whether it has a ReLU; without one, guided backprop is the gradient.
    canonizer
        Zennit's canonizer for its order of layers; in DenseNet, normalisation comes before convolution.
    """

    title: str
    kind: str = "image"
    layer: str | None = None
    relu: bool = False
    canonizer: str | None = "SequentialMergeBatchNorm"


NETS = {
    "resnet50": Net("ResNet-50", layer="layer4", relu=True, canonizer="ResNetCanonizer"),
    "mobilenet_v2": Net("MobileNetV2", layer="features"),
    "efficientnet_lite0": Net("EfficientNet-Lite0", layer="<net._avg_pooling"),
    "densenet121": Net("DenseNet-121", layer="features", relu=True, canonizer=None),
    "convnext_tiny": Net("ConvNeXt-T", layer="<avgpool"),
    "swin_t": Net("Swin-T"),
    "vit_b_16": Net("ViT-B/16"),
    "bert": Net("BERT-like, 6 layers", "tokens"),
    "lstm": Net("LSTM, 2 layers", "sequence"),
}


def feeds(name: str, batch: int) -> dict[str, Array]:
    """Return inputs by name in the exported model, always the same."""
    random = np.random.default_rng(0)
    kind = NETS[name].kind
    if kind == "tokens":
        ids = random.integers(0, 30000, (batch, TOKENS))
        return {"ids": ids, "mask": np.ones_like(ids)}
    shape = (batch, 3, 224, 224) if kind == "image" else (batch, FRAMES, BANDS)
    return {"image": random.standard_normal(shape).astype(np.float32)}


def model_path(name: str, folder: Path) -> Path:
    """Return the path of the ONNX model."""
    return MODELS / f"{name}.onnx" if name == "efficientnet_lite0" else folder / f"{name}.onnx"
