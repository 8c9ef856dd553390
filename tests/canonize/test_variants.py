"""A network and its deployed variants: exported at other opsets, fused by ONNX Runtime, halved, quantized.

tools/variants.py does the same, and more, with networks of a useful size.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn
from torch.nn import functional as F

import onnxplain
from tests.canonize.contrib import strange
from tests.canonize.expansions.test_quantized import INTEGER_LAYERS
from tests.canonize.models import Array, model, normal, ops, run_original
from tests.reference import relative_error, run_ort


class Cnn(nn.Module):
    """Convolutions with activations that ONNX Runtime fuses, a residual connection, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.d = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.a(x))
        h = F.max_pool2d(F.relu(h + self.b(h)), 2)
        h = F.leaky_relu(self.c(h), 0.1)
        return self.d(h.mean((2, 3)))


class Transformer(nn.Module):
    """Patches of an image as tokens, and two encoder layers with the normalisation after and before."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, stride=4)
        self.layers = nn.Sequential(*(Layer(first) for first in (False, True)))
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.layers(tokens).mean(1))


class Layer(nn.Module):
    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.a, self.b = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], -1, 3, 4, 8).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.transpose(-2, -1) / 8**0.5, -1) @ v
        return self.out(mixed.transpose(1, 2).reshape(x.shape[0], -1, 32))

    def feed(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.first:
            x = x + self.attend(self.a(x))
            return x + self.feed(self.b(x))
        x = self.a(x + self.attend(x))
        return self.b(x + self.feed(x))


X = normal(4, 3, 16, 16)
NETS: dict[str, Callable[[], nn.Module]] = {"cnn": Cnn, "transformer": Transformer}
METHODS: list[tuple[str, dict[str, Any]]] = [("gradient", {}), ("integrated_gradients", {"steps": 8})]
LRP: list[tuple[str, dict[str, Any]]] = [
    ("guided_backprop", {}),
    ("lrp", {"rule": "epsilon"}),
    ("lrp", {"composite": "epsilon_plus"}),
]


class Samples(CalibrationDataReader):
    def __init__(self) -> None:
        self.batches = iter([{"x": normal(4, 3, 16, 16, seed=seed)} for seed in range(1, 9)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.batches, None)


def extended(source: Path, target: Path, level: Any = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED) -> None:
    """The model that ONNX Runtime saves at an optimisation level."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    ort.InferenceSession(source, options, ["CPUExecutionProvider"])


def static(form: QuantFormat, kind: QuantType, source: Path, target: Path) -> None:
    signed = kind == QuantType.QInt8
    quantize_static(
        source, target, Samples(), form, activation_type=kind, weight_type=QuantType.QInt8, per_channel=not signed
    )


VARIANTS: dict[str, Callable[[Path, Path], None]] = {
    "pairs of uint8": functools.partial(static, QuantFormat.QDQ, QuantType.QUInt8),
    "pairs of int8": functools.partial(static, QuantFormat.QDQ, QuantType.QInt8),
    "operators on uint8": functools.partial(static, QuantFormat.QOperator, QuantType.QUInt8),
    "operators on int8": functools.partial(static, QuantFormat.QOperator, QuantType.QInt8),
    "dynamic": functools.partial(quantize_dynamic, weight_type=QuantType.QUInt8),
}


def exported(name: str, path: Path, opset: int = 17, free: bool = True) -> Path:
    torch.manual_seed(0)
    axes = {"x": {0: "N"}, "y": {0: "N"}} if free else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter is deprecated, but needs no more packages
        x = torch.from_numpy(X if free else X[:1])
        names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": axes}
        torch.onnx.export(NETS[name]().eval(), (x,), path, dynamo=False, opset_version=opset, **names)
    return path


@pytest.fixture(scope="module", params=NETS)
def net(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    logging.getLogger("root").setLevel(logging.ERROR)  # of the quantizer
    return exported(request.param, tmp_path_factory.mktemp(request.param) / f"{request.param}.onnx")


def explained(path: Path, method: str, options: dict[str, Any], **weights: Array) -> Array:
    (x,) = (v for v in onnxplain.load(path).inputs if v.name == "x")
    feeds = {"x": X.astype(x.dtype), **weights}
    return onnxplain.explain(path, feeds, method, target=3, wrt="x", **options).values.reshape(len(X), -1)


def similarities(a: Array, b: Array) -> Array:
    """Cosine similarity of each sample's attributions."""
    return np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def fused_operators(path: Path) -> set[str]:
    return {n.op_type for n in onnx.load(path).graph.node if n.domain}


def test_saved_by_onnx_runtime(net: Path) -> None:
    saved = net.with_suffix(".extended.onnx")
    extended(net, saved)
    assert fused_operators(saved)
    assert not strange(onnxplain.load(saved).canonical().graph.nodes)
    for method, options in METHODS + LRP:
        a, b = explained(net, method, options), explained(saved, method, options)
        assert relative_error(b, a) < 1e-4, (method, options)  # measured: 5e-6 in LRP of the transformer, else 0


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("opset", [9, 11, 13, 20])
def test_exported_at_another_opset(net: Path, opset: int, free: bool) -> None:
    other = exported(net.stem, net.with_suffix(f".{opset}.{free}.onnx"), opset, free)
    for method, options in METHODS + LRP:
        a, b = explained(net, method, options), explained(other, method, options)
        assert relative_error(b, a) < 1e-4, (method, options)  # measured: 0


def test_weights_as_inputs(net: Path) -> None:
    proto = onnx.load(net)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.data_type == 1 and t.dims}
    kept = [t for t in proto.graph.initializer if t.name not in weights]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    declared = [onnx.helper.make_tensor_value_info(name, 1, array.shape) for name, array in weights.items()]
    proto.graph.input.extend(declared)
    path = net.with_suffix(".fed.onnx")
    onnx.save(proto, path)
    for method, options in METHODS + LRP:
        a, b = explained(net, method, options), explained(path, method, options, **weights)
        assert relative_error(b, a) < 1e-4, (method, options)  # measured: 3e-6


@pytest.mark.parametrize("inside", [True, False])
def test_half_precision(net: Path, inside: bool) -> None:
    path = net.with_suffix(f".half.{inside}.onnx")
    onnx.save(convert_float_to_float16(onnx.load(net), keep_io_types=inside), path)
    for method, options in METHODS + LRP:
        found = similarities(explained(path, method, options), explained(net, method, options))
        assert found.min() > 0.99, (method, options, found)  # measured: 0.9998 and above


def test_weights_in_blocks_for_one_processor_are_refused(net: Path) -> None:
    """The model that ONNX Runtime saves at its highest optimisation level, with names for all nodes."""
    saved = net.with_suffix(".all.onnx")
    extended(net, saved, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    blocked = [n for n in onnx.load(saved).graph.node if n.domain == "com.microsoft.nchwc"]
    if not blocked:
        pytest.skip("ONNX Runtime keeps the usual layout on this processor")
    with pytest.raises(onnxplain.UnsupportedOperatorError) as error:
        onnxplain.explain(saved, X)
    assert all(f"com.microsoft.nchwc.{n.op_type} '{n.name or n.output[0]}'" in str(error.value) for n in blocked)


@pytest.mark.parametrize("again", [False, True], ids=["as it is", "saved by ONNX Runtime"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_quantized(net: Path, variant: str, again: bool) -> None:
    path = net.with_suffix(f".{variant}.onnx")
    VARIANTS[variant](net, path)
    if again:
        path, source = path.with_suffix(".extended.onnx"), path
        extended(source, path)
    model = onnxplain.load(path)
    graph = model.canonical().graph
    assert not strange(graph.nodes)
    assert not INTEGER_LAYERS.intersection(ops(graph))
    (own,) = run_original(onnx.load(path), {"x": X})
    (ours,) = run_ort(graph, {"x": X}).values()
    assert relative_error(ours, own) < 0.02  # measured: 0, or one step of the last rounding in single numbers
    assert np.array_equal(ours.argmax(1), own.argmax(1))
    for method, options in METHODS + LRP:
        found = similarities(explained(path, method, options), explained(net, method, options))
        assert found.min() > 0.9, (method, options, found)  # measured: 0.933 and above


@pytest.mark.parametrize("variant", VARIANTS)
def test_explainers_of_quantized_models_run_by_themselves(net: Path, variant: str) -> None:
    """With the default options of ONNX Runtime, which rewrites integers around MaxPool."""
    path = net.with_suffix(f".{variant}.onnx")
    VARIANTS[variant](net, path)
    explainer = onnxplain.Explainer(path, "gradient")
    alone = net.with_suffix(f".{variant}.explainer.onnx")
    explainer.export(alone)
    session = ort.InferenceSession(alone, providers=["CPUExecutionProvider"])
    outputs = [o.name for o in session.get_outputs()]
    feeds = {"x": X, "target": np.full(len(X), 3, np.int64)}
    results = dict(zip(outputs, session.run(outputs, feeds), strict=True))
    assert relative_error(results["attribution"], explainer(X, 3).values) < 1e-5


def test_rounding_so_fine_that_it_makes_no_difference() -> None:
    """In LRP, too, where the bias that is added behind a rounded matrix product belongs to the layer."""
    text = """(float[N,6] x) => (float[N,4] y) {{
        {0} a = MatMul({1}x, v) {2} b = Add({3}a, p) {4} r = Relu({5}b) {6} y = MatMul({7}r, w)
    }}"""
    weights = {"v": normal(6, 8), "p": normal(8, seed=1), "w": normal(8, 4, seed=2)}
    names = ("x", "a", "b", "r")
    pairs = (f"q{n} = QuantizeLinear({n}, s, z) d{n} = DequantizeLinear(q{n}, s, z)" for n in names)
    rounded = text.format(*(part for pair in pairs for part in (pair, "d")))
    fine = {"s": np.array(2e-4, np.float32), "z": np.array(40000, np.uint16)}
    proto = model(rounded, opset=21, **weights, **fine)
    plain = model(text.format(*[""] * 8), opset=21, **weights)
    x = normal(5, 6)
    for method, options in METHODS + LRP:
        a, b = (onnxplain.explain(m, x, method, target=1, **options).values for m in (plain, proto))
        assert relative_error(b, a) < 5e-3, (method, options)
