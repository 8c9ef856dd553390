"""The ways in which deployed models come about: each maker changes a model without changing its function.

A maker gets the network with its plain file and writes one file, or raises `CannotError`. tools/variants.py explains
the results.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime as ort
import torch
from onnxruntime import quantization
from onnxruntime.quantization import QuantFormat, QuantType
from torch import nn

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
OPSET = 17  # of the plain model
LARGE = 1024  # bytes of what counts as a weight


class CannotError(Exception):
    """No tool can make this variant of the network."""


@dataclass(frozen=True)
class Net:
    """A network to make variants of.

    Attributes
    ----------
    module
        Makes the torch module; asked whether attention shall be one operator.
    feeds, more
        The samples that get explained, and others to calibrate on.
    data
        The input that gets the attribution.
    axes
        Free dimensions of the inputs.
    methods
        What the variants are explained with: title -> method and its options.
    quantization
        Options of static quantization that keep the model usable.
    plain
        The plain model.
    """

    module: Callable[[bool], nn.Module]
    feeds: Feeds
    more: list[Feeds]
    data: str
    axes: dict[str, dict[int, str]]
    methods: dict[str, tuple[str, dict[str, Any]]]
    quantization: dict[str, Any]
    plain: Path


Maker = Callable[[Net, Path], None]


def exported(opset: int, dynamo: bool, static: bool = False) -> Maker:
    """Export from torch, by tracing or by torch.export, at an opset; ``static``: for a single sample of fixed size."""

    def make(net: Net, path: Path) -> None:
        inputs = tuple(torch.from_numpy(x[:1] if static else x) for x in net.feeds.values())
        options: dict[str, Any] = {"dynamo": False}
        if dynamo:
            options = {"dynamo": True, "external_data": False, "verbose": False}
        if dynamo and not static:
            named = {name: torch.export.Dim(name) for axes in net.axes.values() for name in axes.values()}
            options["dynamic_shapes"] = tuple({i: named[d] for i, d in net.axes[k].items()} for k in net.feeds)
        elif not static:
            options["dynamic_axes"] = net.axes | {"scores": {0: "batch"}}
        options |= {"opset_version": opset, "input_names": list(net.feeds), "output_names": ["scores"]}
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            try:
                torch.onnx.export(net.module(dynamo), inputs, path, **options)
            except torch.onnx.errors.OnnxExporterError as error:
                raise CannotError(str(error)) from None
        model = onnx.load(path, load_external_data=False)
        found = next(o.version for o in model.opset_import if not o.domain)
        if found != opset:
            path.unlink()
            raise CannotError(f"torch made opset {found}")

    return make


def converted(opset: int) -> Maker:
    """Convert with onnx's own version converter, upwards or downwards."""

    def make(net: Net, path: Path) -> None:
        try:
            model = onnx.version_converter.convert_version(onnx.load(net.plain), opset)
            ort.InferenceSession(model.SerializeToString(), quiet(), providers=["CPUExecutionProvider"])
        except Exception as error:  # of the converter and of ONNX Runtime, which share no base
            raise CannotError(str(error).strip().splitlines()[0].rpartition("failed: ")[2]) from None
        onnx.save(model, path)

    return make


def quiet() -> ort.SessionOptions:
    """Return options of a session that logs fatal errors only."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return options


def rewritten(module: str, function: Callable[[Any, onnx.ModelProto], onnx.ModelProto]) -> Maker:
    """Rewrite by a tool of another package."""

    def make(net: Net, path: Path) -> None:
        try:
            package = __import__(module, fromlist=["_"])
        except ImportError as error:
            raise CannotError(str(error)) from None
        with contextlib.redirect_stdout(io.StringIO()):
            onnx.save(function(package, onnx.load(net.plain)), path)

    return make


def saved(level: str) -> Maker:
    """Save the model as ONNX Runtime optimises it at a level."""

    def make(net: Net, path: Path) -> None:
        options = quiet()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(net.plain, options, ["CPUExecutionProvider"])

    return make


def fused_as_bert(net: Net, path: Path) -> None:
    """Fuse with ONNX Runtime's tool for transformers, also for GPUs."""
    from onnxruntime.transformers import optimizer

    model = optimizer.optimize_model(str(net.plain), "bert", num_heads=12, hidden_size=384, opt_level=0)
    if not any(n.domain for n in model.model.graph.node):
        raise CannotError("the tool finds nothing to fuse")
    model.save_model_to_file(str(path))


def external(net: Net, path: Path) -> None:
    """Keep the weights in another file."""
    data = path.with_suffix(".data").name
    path.with_name(data).unlink(missing_ok=True)  # onnx appends
    onnx.save_model(onnx.load(net.plain), path, save_as_external_data=True, location=data, size_threshold=LARGE)


def listed(net: Net, path: Path) -> None:
    """List the weights among the inputs as well, as was the rule before IR 4."""
    model = onnx.load(net.plain)
    model.ir_version = 3
    _declare(model, lambda tensor: True)
    onnx.save(model, path)


def fed(net: Net, path: Path) -> None:
    """Make the weights inputs that have to be fed."""
    model = onnx.load(net.plain)
    kept = [t for t in model.graph.initializer if not _is_weight(t)]
    _declare(model, _is_weight)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, path)


def weights(plain: Path) -> Feeds:
    """Return the weights that the variant made by `fed` needs as inputs besides the samples."""
    tensors = onnx.load(plain).graph.initializer
    return {t.name: onnx.numpy_helper.to_array(t) for t in tensors if _is_weight(t)}


def _is_weight(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type == onnx.TensorProto.FLOAT and onnx.numpy_helper.to_array(tensor).nbytes >= LARGE


def _declare(model: onnx.ModelProto, which: Callable[[onnx.TensorProto], bool]) -> None:
    for tensor in filter(which, model.graph.initializer):
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def halved(keep_io_types: bool) -> Maker:
    """Convert to float16, by the tool that onnxconverter-common and ONNX Runtime share."""

    def make(net: Net, path: Path) -> None:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers too small for float16
            onnx.save(convert_float_to_float16(onnx.load(net.plain), keep_io_types=keep_io_types), path)

    return make


class _Samples(quantization.CalibrationDataReader):
    def __init__(self, feeds: list[Feeds]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self.feeds, None)


def quantized(form: QuantFormat, activation: QuantType) -> Maker:
    """Quantize activations and weights, by ranges from samples."""

    def make(net: Net, path: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            prepared = Path(scratch, "prepared.onnx")
            quantization.shape_inference.quant_pre_process(net.plain, prepared, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared,
                path,
                _Samples(net.more),
                form,
                activation_type=activation,
                weight_type=QuantType.QInt8,
                per_channel=True,
                **net.quantization,
            )

    return make


def dynamic(net: Net, path: Path) -> None:
    """Quantize weights; activations by their range at run time."""
    quantization.quantize_dynamic(net.plain, path, weight_type=QuantType.QUInt8)


def blurred(amount: float, seed: int) -> Maker:
    """Change every weight a little, at random."""

    def make(net: Net, path: Path) -> None:
        model, random = onnx.load(net.plain), np.random.default_rng(seed)
        for tensor in filter(_is_weight, model.graph.initializer):
            array = onnx.numpy_helper.to_array(tensor)
            changed = array * (1 + amount * random.standard_normal(array.shape))
            tensor.CopyFrom(onnx.numpy_helper.from_array(changed.astype(np.float32), tensor.name))
        onnx.save(model, path)

    return make


OPSETS = (9, 11, 13, 15, 18, 20, 21, 23)
LOSSLESS: dict[str, Maker] = {
    **{f"exported at opset {k}": exported(k, dynamo=False) for k in (9, 11, 13, 15, 17, 18, 20)},
    **{f"exported at opset {k} by torch.export": exported(k, dynamo=True) for k in (18, 20, 21, 23)},
    **{f"converted to opset {k}": converted(k) for k in OPSETS},
    "simplified by onnxsim": rewritten("onnxsim", lambda onnxsim, model: onnxsim.simplify(model)[0]),
    "simplified by onnxslim": rewritten("onnxslim", lambda onnxslim, model: onnxslim.slim(model)),
    "simplified by onnxoptimizer": rewritten("onnxoptimizer", lambda package, model: package.optimize(model)),
    "simplified by onnxscript": rewritten("onnxscript.optimizer", lambda package, model: package.optimize(model)),
    "saved by ONNX Runtime, basic": saved("BASIC"),
    "saved by ONNX Runtime, extended": saved("EXTENDED"),
    "fused by onnxruntime.transformers": fused_as_bert,
    "static batch": exported(OPSET, dynamo=False, static=True),
    "static batch at opset 9": exported(9, dynamo=False, static=True),
    "static batch by torch.export": exported(20, dynamo=True, static=True),
    "external data": external,
    "weights listed as inputs": listed,
    "weights as inputs": fed,
}
FLOAT16: dict[str, Maker] = {
    "float16 inside": halved(keep_io_types=True),
    "float16": halved(keep_io_types=False),
}
INT8: dict[str, Maker] = {
    "QDQ uint8": quantized(QuantFormat.QDQ, QuantType.QUInt8),
    "QDQ int8": quantized(QuantFormat.QDQ, QuantType.QInt8),
    "QOperator uint8": quantized(QuantFormat.QOperator, QuantType.QUInt8),
    "QOperator int8": quantized(QuantFormat.QOperator, QuantType.QInt8),
    "QDQ int8, activations uint16": quantized(QuantFormat.QDQ, QuantType.QUInt16),
    "dynamic int8": dynamic,
}
NOISE: dict[str, Maker] = {f"weights off by {amount:.2%}": blurred(amount, 0) for amount in (3e-4, 1e-3, 1e-2)}
