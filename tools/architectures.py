#!/usr/bin/env python3
"""Check onnxplain's gradient against float64 torch on exported architectures.

Every architecture is built with seeded random weights, calibrated so that neither activations nor gradients vanish or
explode, exported to ONNX, and explained. The gradient of the predicted class has to agree with torch's float64 gradient
about as well as torch's own float32 gradient does. Exports and references are cached: ``NAME.EXPORTER[.static].onnx``
and ``NAME.npz`` with ``x`` (float32), ``target`` (the predicted class per sample), ``logits64``, ``grad64``, ``grad32``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import importlib
import io
import logging
import math
import os
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

Builder = Callable[[], nn.Module]
Reference = dict[str, np.ndarray]

BATCH = 2
CLASSES = 1000
COLUMNS = ("architecture", "exporter", "nodes", "error", "torch float32", "compile s", "explain s", "verdict")
PASSED = ("ok", "exported")
TOLERANCE = 1e-3  # relative error that always passes
FLOAT32_FACTOR = 3.0  # ... or this many times torch's own float32 error
progress = Console(stderr=True)


@functools.cache  # keeps the library, and with it the definitions, alive
def define_torchvision_operators() -> torch.library.Library | None:
    """Define the operators torchvision registers at import, where its wheel's compiled operators cannot be loaded."""
    package = next(Path(path, "torchvision") for path in sys.path if Path(path, "torchvision/__init__.py").is_file())
    for compiled in package.glob("_C*"):
        with contextlib.suppress(OSError):
            torch.ops.load_library(str(compiled))
            return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
        library.define(f"{name}(Tensor input) -> Tensor")
        library.define(f"_{name}_backward(Tensor input) -> Tensor")
    return library


def torchvision(name: str, **options: object) -> Builder:
    """Return a builder of an untrained torchvision model."""
    return lambda: importlib.import_module("torchvision.models").get_model(name, weights=None, **options)


def timm(name: str, **options: object) -> Builder:
    """Return a builder of an untrained timm model."""
    return lambda: importlib.import_module("timm").create_model(name, exportable=True, **options)


INCEPTION = {"transform_input": False, "init_weights": False, "aux_logits": False}
ARCHITECTURES: dict[str, tuple[Builder, int]] = {
    "resnet18": (torchvision("resnet18"), 224),
    "mobilenet_v2": (torchvision("mobilenet_v2"), 224),
    "vit_b_16": (torchvision("vit_b_16"), 224),
    "swin_t": (torchvision("swin_t"), 224),
    "convnext_tiny": (torchvision("convnext_tiny"), 224),
    "densenet121": (torchvision("densenet121"), 224),
    "resnet50": (torchvision("resnet50"), 224),
    "efficientnet_b0": (torchvision("efficientnet_b0"), 224),
    "mobilenet_v3_large": (torchvision("mobilenet_v3_large"), 224),
    "squeezenet1_1": (torchvision("squeezenet1_1"), 224),
    "shufflenet_v2_x1_0": (torchvision("shufflenet_v2_x1_0"), 224),
    "googlenet": (torchvision("googlenet", **INCEPTION), 224),
    "inception_v3": (torchvision("inception_v3", **INCEPTION), 299),
    "regnet_y_400mf": (torchvision("regnet_y_400mf"), 224),
    "vgg11_bn": (torchvision("vgg11_bn"), 224),
    "maxvit_t": (torchvision("maxvit_t"), 224),
    "mobilevit_xxs": (timm("mobilevit_xxs"), 256),
    "ghostnet_100": (timm("ghostnet_100"), 224),
    "efficientformer_l1": (timm("efficientformer_l1"), 224),
    "poolformer_s12": (timm("poolformer_s12"), 224),
    "mixer_s32_224": (timm("mixer_s32_224"), 224),
    "resnest14d": (timm("resnest14d"), 224),
    "regnetx_002": (timm("regnetx_002"), 224),
    "levit_128s": (timm("levit_128s"), 224),
    "coat_lite_tiny": (timm("coat_lite_tiny"), 224),
    "xcit_nano_12_p16_224": (timm("xcit_nano_12_p16_224"), 224),
    "repvgg_a0": (timm("repvgg_a0"), 224),
    "hardcorenas_a": (timm("hardcorenas_a"), 224),
    "eca_nfnet_l0": (timm("eca_nfnet_l0"), 224),
    "convmixer_256_8": (timm("convmixer_768_32", dim=256, depth=8), 224),
    "gcresnet50t": (timm("gcresnet50t"), 224),
    "halonet26t": (timm("halonet26t"), 256),
}


def random_images(count: int, size: int) -> torch.Tensor:
    """Return noise with structure at several scales, so that pooled features differ between the samples."""
    scales = [torch.randn(count, 3, scale, scale) for scale in (4, 16, 64, size)]
    return sum(nn.functional.interpolate(noise, size=size, mode="bilinear") for noise in scales) / 1.5


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Randomise what is constant at initialisation and raise weights too small to carry signal or gradient."""
    matrices = (nn.Linear, nn.Conv1d, nn.Conv2d)
    weights = {id(module.weight) for module in model.modules() if isinstance(module, matrices)}
    for name, parameter in model.named_parameters():
        low, high = parameter.min().item(), parameter.max().item()
        if id(parameter) in weights:
            if low == high:
                nn.init.normal_(parameter)
            gain = parameter.std().item() * math.sqrt(parameter[0].numel())
            parameter.mul_(max(1.0, 1.0 / gain))
        elif low < high:
            continue
        elif name.endswith("bias"):
            parameter.add_(0.1 * torch.randn_like(parameter))
        elif abs(low) >= 0.5:  # normalisation weights, temperatures
            parameter.mul_(0.7 + 0.6 * torch.rand_like(parameter))
        elif parameter.numel() == max(parameter.shape, default=1):  # layer scale, zero-initialised residual branches
            parameter.copy_(0.3 * (0.5 + torch.rand_like(parameter)))
        else:  # zero-initialised embeddings
            nn.init.normal_(parameter, std=0.1)


@torch.no_grad()
def calibrate(model: nn.Module, size: int) -> None:
    """Set batch normalisation statistics from data and spread the logits."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # a cumulative average
    for _ in range(2 if norms else 0):
        model(random_images(16, size))
    model.eval()
    spread = model(random_images(BATCH, size)).std(dim=1).mean().item()
    for parameter in model.parameters():
        if parameter.ndim >= 2 and parameter.shape[0] == CLASSES:
            parameter.mul_(2.0 / spread)


@functools.lru_cache(maxsize=1)
def build(name: str) -> nn.Module:
    """Return the named architecture, in evaluation mode, always with the same weights; copy it before changing it."""
    define_torchvision_operators()
    builder, size = ARCHITECTURES[name]
    torch.manual_seed(zlib.crc32(name.encode()))
    model = builder()
    randomise(model)
    calibrate(model, size)
    return model.train().eval()  # train() also drops what some models cached in evaluation mode


def make_reference(name: str, model: nn.Module) -> Reference:
    """Return an input, the predicted classes, and torch's logits and gradients."""
    torch.manual_seed(zlib.crc32(f"{name} input".encode()))
    x = random_images(BATCH, ARCHITECTURES[name][1])
    target: torch.Tensor | None = None
    arrays = {"x": x.numpy()}
    for bits, dtype in ((64, torch.float64), (32, torch.float32)):
        leaf = x.to(dtype, copy=True).requires_grad_()
        logits = copy.deepcopy(model).to(dtype)(leaf)
        target = logits.argmax(dim=1) if target is None else target
        (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), leaf)
        arrays |= {f"logits{bits}": logits.detach().numpy(), f"grad{bits}": gradient.numpy(), "target": target.numpy()}
    return arrays


def export(model: nn.Module, reference: Reference, path: Path, exporter: str, batch: str) -> None:
    """Export the model and check the file's logits with ONNX Runtime; the file appears once both succeeded."""
    # TorchScript traces one sample, to notice a batch size left in the graph; torch.export would specialise on one.
    dynamic = batch == "dynamic"
    x = torch.from_numpy(reference["x"][: BATCH if dynamic and exporter == "dynamo" else 1])
    partial = path.with_suffix(".partial")
    arguments: dict[str, object] = {"dynamo": False, "opset_version": 17}
    if exporter == "dynamo":
        arguments = {"dynamo": True, "opset_version": 18, "external_data": False, "verbose": False}
    if dynamic and exporter == "dynamo":
        arguments["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    elif dynamic:
        arguments["dynamic_axes"] = {"input": {0: "batch"}, "logits": {0: "batch"}}
    arguments |= {"input_names": ["input"], "output_names": ["logits"]}
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(copy.deepcopy(model), (x,), partial, **arguments)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(str(partial), options, providers=["CPUExecutionProvider"])
        for stop in (1, BATCH) if dynamic else (1,):
            (logits,) = session.run(None, {"input": reference["x"][:stop]})
            error = relative_error(logits, reference["logits64"][:stop])
            if not error < TOLERANCE:
                raise ValueError(f"logits are off by {error:.1e} at batch size {stop}")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def relative_error(values: np.ndarray, expected: np.ndarray) -> float:
    """Return the norm of the difference relative to the norm of the expected values."""
    return float(np.linalg.norm((values - expected).ravel()) / np.linalg.norm(expected.ravel()))


@dataclass
class Row:
    """One line of the table."""

    name: str
    exporter: str
    nodes: int | None = None
    error: float | None = None
    error32: float | None = None
    verdict: str = ""
    compile_seconds: float | None = None
    explain_seconds: float | None = None

    def cells(self) -> list[str]:
        """Return the row as the table shows it."""
        numbers = (self.nodes, self.error, self.error32, self.compile_seconds, self.explain_seconds)
        formats = ("d", ".1e", ".1e", ".1f", ".2f")
        texts = ["-" if number is None else format(number, spec) for number, spec in zip(numbers, formats, strict=True)]
        color = "green" if self.verdict in PASSED else "red"
        return [self.name, self.exporter, *texts, f"[{color}]{escape(self.verdict)}[/]"]


def check(row: Row, path: Path, reference: Reference) -> None:
    """Explain the exported model and compare the gradient with the reference."""
    import onnxplain as ox

    x, target = reference["x"], reference["target"]
    started = time.perf_counter()
    explainer = ox.Explainer(path, "gradient")
    explainer(x, target=target)
    compiled = time.perf_counter()
    values = np.asarray(explainer(x, target=target).values)
    seconds = time.perf_counter() - compiled
    row.compile_seconds = max(0.0, compiled - started - seconds)
    row.explain_seconds = seconds / len(x)
    row.error = relative_error(values, reference["grad64"])
    row.verdict = "ok" if row.error <= max(FLOAT32_FACTOR * (row.error32 or 0.0), TOLERANCE) else "FAIL"


def load_reference(name: str, cache: Path) -> Reference:
    """Return the reference of an architecture, from the cache if it is there."""
    path, partial = cache / f"{name}.npz", cache / f"{name}.partial.npz"
    if not path.exists():
        np.savez(partial, **make_reference(name, build(name)))
        partial.replace(path)
    with np.load(path) as arrays:
        return dict(arrays)


def run(name: str, exporter: str, batch: str, cache: Path, export_only: bool) -> Row:
    """Export one architecture unless the cache has it, and check it."""
    suffix = f"{exporter}.static" if batch == "static" else exporter
    path = cache / f"{name}.{suffix}.onnx"
    row = Row(name, suffix)
    stage = "export failed"
    try:
        reference = load_reference(name, cache)
        row.error32 = relative_error(reference["grad32"], reference["grad64"])
        if not path.exists():
            export(build(name), reference, path, exporter, batch)
        row.nodes = len(onnx.load(path, load_external_data=False).graph.node)
        row.verdict, stage = "exported", "FAIL"
        if not export_only:
            check(row, path, reference)
    except Exception as error:  # noqa: BLE001  # one failure must not stop the others
        row.verdict = f"{stage}: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return row


def main() -> int:
    """Run the command line; the exit status is 1 where anything failed."""
    default_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "onnxplain", "architectures")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=ARCHITECTURES, help="architectures to check")
    parser.add_argument("--exporter", choices=("torchscript", "dynamo", "both"), default="torchscript")
    parser.add_argument("--batch", choices=("dynamic", "static"), default="dynamic", help="static: exported at batch 1")
    parser.add_argument("--cache", type=Path, default=default_cache, help="export folder (default: %(default)s)")
    parser.add_argument("--export-only", action="store_true", help="fill the cache without checking")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    options.cache.mkdir(parents=True, exist_ok=True)
    exporters = ("torchscript", "dynamo") if options.exporter == "both" else (options.exporter,)
    table = Table(*COLUMNS, title="gradient against float64 torch")
    failed = False
    for name in options.only or ARCHITECTURES:
        for exporter in exporters:
            row = run(name, exporter, options.batch, options.cache, options.export_only)
            progress.log(row.name, row.exporter, row.verdict, markup=False)
            table.add_row(*row.cells())
            failed = failed or row.verdict not in PASSED
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
