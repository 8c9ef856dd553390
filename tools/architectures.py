#!/usr/bin/env python3
"""Check onnxplain's gradient against float64 torch on exported architectures.

Every architecture is built with seeded random weights, calibrated so that neither activations nor gradients vanish or
explode, exported to ONNX, and explained. The gradient of the predicted class has to agree with torch's float64
gradient about as well as torch's own float32 gradient does. The cache holds ``NAME.EXPORTER[.static].onnx`` and
``NAME.npz``: ``x``, ``target`` (the predicted class per sample), ``logits64``, ``grad64``, ``grad32``, ``error32``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import importlib
import io
import itertools
import logging
import math
import os
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

Reference = dict[str, np.ndarray]

ATTEMPTS = 16
INPUT_NOISE = 3e-6  # moves activations a few times as far as float32 rounding does
BATCH = 2
CLASSES = 1000
COLUMNS = ("architecture", "exporter", "nodes", "error", "torch float32", "compile s", "explain s", "verdict")
TOLERANCE = 1e-3  # relative error that always passes
FLOAT32_FACTOR = 3.0  # ... or this many times torch's own float32 error
progress = Console(stderr=True, log_path=False)


@functools.cache  # keeps the library, and with it the definitions, alive
def define_torchvision_operators() -> torch.library.Library | None:
    """Define the operators torchvision registers at import, where its wheel's compiled operators cannot be loaded."""
    package = next(Path(path, "torchvision") for path in sys.path if Path(path, "torchvision/__init__.py").is_file())
    with contextlib.suppress(OSError, StopIteration):
        torch.ops.load_library(next(package.glob("_C*")))
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
        library.define(f"{name}(Tensor input) -> Tensor")
        library.define(f"_{name}_backward(Tensor input) -> Tensor")
    return library


def untrained(module: str, factory: str, *arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    """Return a builder that imports the module and calls its factory."""
    return lambda: getattr(importlib.import_module(module), factory)(*arguments, **options)


torchvision = functools.partial(untrained, "torchvision.models", "get_model")
timm = functools.partial(untrained, "timm", "create_model")
INCEPTION = {"transform_input": False, "init_weights": False, "aux_logits": False}
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], int]] = {
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
    "convmixer_256_8": (untrained("timm.models.convmixer", "ConvMixer", 256, 8, kernel_size=7, patch_size=7), 224),
    "gcresnet50t": (timm("gcresnet50t"), 224),
    "halonet26t": (timm("halonet26t"), 256),
}


def random_images(count: int, size: int) -> torch.Tensor:
    """Return noise with structure at several scales, so that pooled features differ between the samples."""
    scales = [torch.randn(count, 3, scale, scale) for scale in (4, 16, 64, size)]
    return torch.stack([nn.functional.interpolate(noise, size, mode="bilinear") for noise in scales]).sum(0) / 1.5


def randomise(model: nn.Module) -> None:
    """Randomise what is constant at initialisation and raise weights too small to carry signal or gradient."""
    weights = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)}
    for name, parameter in model.named_parameters():
        constant = bool(parameter.min() == parameter.max())
        if id(parameter) in weights:
            parameter.copy_(torch.randn_like(parameter) if constant else parameter)
            parameter.mul_(max(1.0, 1.0 / (parameter.std().item() * math.sqrt(parameter[0].numel()))))
        elif not constant:
            continue
        elif name.endswith("bias"):
            parameter.add_(0.1 * torch.randn_like(parameter))
        elif parameter.abs().max() >= 0.5:  # normalisation weights, temperatures
            parameter.mul_(0.5 + torch.rand_like(parameter))
        elif parameter.numel() == max(parameter.shape, default=1):  # layer scale, zero-initialised residual branches
            parameter.copy_(0.3 * (0.5 + torch.rand_like(parameter)))
        else:  # zero-initialised embeddings
            nn.init.normal_(parameter, std=0.1)


def calibrate(model: nn.Module, size: int) -> None:
    """Set batch normalisation statistics from data and spread the logits."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # a cumulative average
        norm.bias.add_(1.0)  # opens most ReLUs: otherwise deep random networks are chaotic, and float32 is worth little
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
    with torch.no_grad():
        randomise(model)
        calibrate(model, size)
    return model.train().eval()  # train() also drops what some models cached in evaluation mode


def differentiate(model: nn.Module, x: torch.Tensor, target: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Return the logits, the target (the predicted classes if not given), and the gradient of the target logits."""
    logits = model(leaf := x.detach().requires_grad_())
    target = logits.argmax(dim=1) if target is None else target
    (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), leaf)
    return logits.detach(), target, gradient


def make_reference(name: str, path: Path) -> None:
    """Write inputs with torch's predictions and gradients.

    Where float32 rounding decides on which side of the kink of a ReLU or max pooling a value lies, gradients differ by
    far more than rounding. So inputs are drawn until slightly changed ones have nearly the same gradient, and the best
    are kept; what their float32 gradients still differ by at most is torch's own error.
    """
    single, double = copy.deepcopy(build(name)), copy.deepcopy(build(name)).double()
    torch.manual_seed(zlib.crc32(f"{name} input".encode()))
    samples: list[tuple[float, Reference]] = []
    for _ in range(ATTEMPTS):
        x = random_images(BATCH, ARCHITECTURES[name][1])
        logits, target, grad64 = differentiate(double, x.double())
        noise = INPUT_NOISE * torch.randn_like(x)
        grad32, *others = (differentiate(single, x * (1 + sign * noise), target)[2] for sign in (0, 1, -1))
        arrays = {"x": x, "target": target, "logits64": logits, "grad64": grad64, "grad32": grad32}
        for index in range(BATCH):
            sample = {key: array[index].numpy() for key, array in arrays.items()}
            error = max(relative_error(grad[index].numpy(), sample["grad64"]) for grad in (grad32, *others))
            samples.append((error, sample | {"error32": np.array(error)}))
        samples = sorted(samples, key=lambda sample: sample[0])[:BATCH]
        if samples[-1][0] < TOLERANCE / 4:
            break
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **{key: np.stack([sample[key] for _, sample in samples]) for key in samples[0][1]})  # type: ignore
    partial.replace(path)


def export(name: str, reference: Reference, path: Path, exporter: str, dynamic: bool) -> None:
    """Export an architecture and check the file's logits with ONNX Runtime."""
    # TorchScript traces one sample, to notice a batch size left in the graph; torch.export would specialise on one.
    x = torch.from_numpy(reference["x"][: BATCH if dynamic and exporter == "dynamo" else 1])
    partial = path.with_suffix(".partial")  # stays there for inspection where the check fails
    arguments: dict[str, Any] = {"dynamo": False, "opset_version": 17}
    if exporter == "dynamo":
        arguments = {"dynamo": True, "opset_version": 18, "external_data": False, "verbose": False}
    if dynamic and exporter == "dynamo":
        arguments["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    elif dynamic:
        arguments["dynamic_axes"] = {"input": {0: "batch"}, "logits": {0: "batch"}}
    arguments |= {"input_names": ["input"], "output_names": ["logits"]}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(copy.deepcopy(build(name)), (x,), partial, **arguments)
    session = onnxruntime.InferenceSession(partial, providers=["CPUExecutionProvider"])
    for stop in (1, BATCH) if dynamic else (1,):
        (logits,) = session.run(None, {"input": reference["x"][:stop]})
        error = relative_error(logits, reference["logits64"][:stop])
        if not error < TOLERANCE:
            raise ValueError(f"logits are off by {error:.1e} at batch size {stop}")
    partial.replace(path)


def relative_error(values: np.ndarray, expected: np.ndarray) -> float:
    """Return the norm of the difference relative to the norm of the expected values."""
    return float(np.linalg.norm((values - expected).ravel()) / np.linalg.norm(expected.ravel()))


def check(path: Path, reference: Reference) -> dict[str, str]:
    """Explain the exported model and compare the gradient with the reference; return the cells this fills."""
    import onnxplain as ox

    x, target = reference["x"], reference["target"]
    started = time.perf_counter()
    explainer = ox.Explainer(path, "gradient")
    explainer(x, target=target)
    compiled = time.perf_counter()
    result = explainer(x, target=target)
    seconds = time.perf_counter() - compiled
    error = relative_error(result.values, reference["grad64"])
    return {
        "error": f"{error:.1e}",
        "compile s": f"{max(0.0, compiled - started - seconds):.1f}",
        "explain s": f"{seconds / len(x):.2f}",
        "verdict": "ok" if error <= max(FLOAT32_FACTOR * reference["error32"].max(), TOLERANCE) else "FAIL",
    }


def run(name: str, exporter: str, options: argparse.Namespace) -> dict[str, str]:
    """Export one architecture unless the cache has it, and check it."""
    suffix = f"{exporter}.static" if options.batch == "static" else exporter
    path, reference_path = options.cache / f"{name}.{suffix}.onnx", options.cache / f"{name}.npz"
    row = dict.fromkeys(COLUMNS, "-") | {"architecture": name, "exporter": suffix}
    stage = "export failed"
    try:
        if not reference_path.exists():
            make_reference(name, reference_path)
        reference = dict(np.load(reference_path))
        if not path.exists():
            export(name, reference, path, exporter, options.batch == "dynamic")
        row |= {"nodes": str(len(onnx.load(path).graph.node)), "verdict": "exported"}
        row["torch float32"] = f"{reference['error32'].max():.1e}"
        stage = "FAIL"
        if not options.export_only:
            row |= check(path, reference)
    except Exception as error:  # one failure must not stop the others
        row["verdict"] = f"{stage}: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    progress.log(name, suffix, row["verdict"], markup=False)
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
    torch._C._jit_set_onnx_log_output_stream("stderr")  # where a failing export prints its whole graph
    options.cache.mkdir(parents=True, exist_ok=True)
    exporters = ("torchscript", "dynamo") if options.exporter == "both" else (options.exporter,)
    rows = [run(*job, options) for job in itertools.product(options.only or ARCHITECTURES, exporters)]
    table = Table(*COLUMNS, title="gradient against float64 torch")
    for row in rows:
        table.add_row(*map(escape, row.values()))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return int(any(row["verdict"] not in ("ok", "exported") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
