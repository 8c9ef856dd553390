"""LSTM, GRU and RNN: against their definition in torch float64, differences of ONNX Runtime's kernels, torch's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn import functional as F

import onnxplain as ox
from onnxplain.backward import recurrent
from onnxplain.storage.reader import to_graph
from tests.models import model, weights
from tests.reference import Case, check_vjp, gradient_graph, gradients, relative_error, rng, single_node

Array = np.ndarray[Any, Any]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DIRECTIONS = ("forward", "reverse", "bidirectional")
LENGTHS = np.array([3, 7, 5], np.int32)
TOLERANCE = 1e-5  # float32 over 40 steps

FUNCTIONS = {
    "Affine": lambda x, alpha=0.0, beta=0.0: alpha * x + beta,
    "Elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0, 1),
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "Relu": torch.relu,
    "ScaledTanh": lambda x, alpha=0.0, beta=0.0: alpha * torch.tanh(beta * x),
    "Sigmoid": torch.sigmoid,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Tanh": torch.tanh,
    "ThresholdedRelu": lambda x, alpha=0.0: F.threshold(x, alpha, 0),
}
NUMBERS = {"Affine": 2, "Elu": 1, "HardSigmoid": 2, "LeakyRelu": 1, "ScaledTanh": 2, "ThresholdedRelu": 1}


def case(
    op: str,
    *,
    steps: int = 7,
    samples: int = 3,
    bias: bool = True,
    initial: bool = True,
    peepholes: bool = False,
    lengths: Array | None = None,
    scale: float = 1.0,
    used: Sequence[int] | None = None,
    constant: Sequence[int] = (),
    **attrs: Any,
) -> Case:
    """One operator with random operands: 4 inputs, 5 hidden values."""
    ways, rows = 2 if attrs.get("direction") == "bidirectional" else 1, GATES[op] * 5
    random = rng(steps)

    def normal(*shape: int) -> Array:
        return (scale * random.normal(size=shape)).astype(np.float32)

    inputs: list[Array | None] = [
        normal(steps, samples, 4),
        normal(ways, rows, 4) / 2,
        normal(ways, rows, 5) / 2,
        normal(ways, 2 * rows) / 2 if bias else None,
        lengths,
        normal(ways, samples, 5) if initial else None,
    ]
    if op == "LSTM":
        inputs += [normal(ways, samples, 5) if initial else None, normal(ways, 15) if peepholes else None]
    while inputs[-1] is None:
        inputs.pop()
    return Case(op, inputs, {"hidden_size": 5, **attrs}, constant, 3 if op == "LSTM" else 2, used, TOLERANCE)


def functions(case: Case, defaults: Sequence[str], ways: int) -> Iterator[Any]:
    numbers = [list(case.attrs.get(f"activation_{sort}", ())) for sort in ("alpha", "beta")]
    for name in case.attrs.get("activations", [*defaults] * ways):
        taken = [sort.pop(0) for sort in numbers[: NUMBERS.get(name, 0)] if sort]
        yield lambda x, name=name, taken=taken: FUNCTIONS[name](x, *taken)


def definition(case: Case, tensors: Sequence[Any]) -> list[torch.Tensor]:
    """The operator's definition in float64, one step after the other."""
    x, w, r, b, lengths, h0, c0, p = (*tensors, *[None] * 8)[:8]
    ways, width = len(w), r.shape[2]
    clip = case.attrs.get("clip", np.inf)
    defaults = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}[case.op]
    all_functions = list(functions(case, defaults, ways))
    states, last_h, last_c = {}, [], []
    for way in range(ways):
        f, g, out = (*all_functions[way * len(defaults) :], None, None)[:3]
        rows = len(w[way])
        b_x, b_h = b[way].split(rows) if b is not None else (0, torch.zeros(rows))
        h, c = (torch.zeros(x.shape[1], width).double() if v is None else v[way] for v in (h0, c0))
        p_i, p_o, p_f = p[way].split(width) if p is not None else (0, 0, 0)
        down = way or case.attrs.get("direction") == "reverse"
        for t in range(len(x))[:: -1 if down else 1]:
            a, a_h = x[t] @ w[way].T + b_x, h @ r[way].T + b_h
            if case.op == "RNN":
                new_h, new_c = f((a + a_h).clamp(-clip, clip)), c
            elif case.op == "GRU":
                (x_z, x_r, x_n), (h_z, h_r, h_n) = a.split(width, 1), a_h.split(width, 1)
                z, reset = f((x_z + h_z).clamp(-clip, clip)), f((x_r + h_r).clamp(-clip, clip))
                late = (reset * h) @ r[way][2 * width :].T + b_h[2 * width :]
                n = x_n + (reset * h_n if case.attrs.get("linear_before_reset") else late)
                new_h, new_c = (1 - z) * g(n.clamp(-clip, clip)) + z * h, c
            else:
                i, o, keep, n = (a + a_h).split(width, 1)
                i, n = f((i + p_i * c).clamp(-clip, clip)), g(n.clamp(-clip, clip))
                keep = 1 - i if case.attrs.get("input_forget") else f((keep + p_f * c).clamp(-clip, clip))
                new_c = keep * c + i * n
                new_h = f((o + p_o * new_c).clamp(-clip, clip)) * out(new_c)
            inside = torch.ones(x.shape[1], 1) if lengths is None else torch.tensor(t < lengths)[:, None].double()
            states[t, way] = new_h * inside
            h, c = torch.where(inside > 0, new_h, h), torch.where(inside > 0, new_c, c)
        some = 1 if lengths is None else torch.tensor(lengths > 0)[:, None]
        last_h.append(h * some)
        last_c.append(c * some)
    y = torch.stack([torch.stack([states[t, way] for way in range(ways)]) for t in range(len(x))])
    return [y, torch.stack(last_h), torch.stack(last_c)][: case.outputs]


def check(case: Case) -> None:
    """The kernel is what the definition says, and the VJP is the definition's gradient, with sizes known or free."""
    tensors = [
        torch.tensor(a, dtype=torch.float64, requires_grad=True) if a is not None and a.dtype.kind == "f" else a
        for a in case.inputs
    ]
    expected = definition(case, tensors)
    proto, feeds = single_node(case, free=False)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for output, truth in zip(session.run(None, feeds), expected, strict=True):
        assert relative_error(output, truth.detach()) < 1e-4  # some of its kernels approximate tanh
    random = rng(1)
    used = range(case.outputs) if case.used is None else case.used
    cotangents = {f"y{i}": random.normal(size=expected[i].shape).astype(np.float32) for i in used}
    sum((expected[i] * torch.tensor(cotangents[f"y{i}"])).sum() for i in used).backward()
    for free in (False, True):
        for name, gradient in gradients(case, cotangents, free).items():
            grad = tensors[int(name[1:])].grad
            truth = np.zeros(gradient.shape) if grad is None else grad.numpy()
            assert relative_error(gradient, truth) <= case.tolerance, (name, free)


VARIANTS: list[Mapping[str, Any]] = [
    {"op": "RNN"},
    {"op": "GRU"},
    {"op": "GRU", "linear_before_reset": 1},
    {"op": "LSTM"},
    {"op": "LSTM", "peepholes": True},
    {"op": "LSTM", "peepholes": True, "input_forget": 1},
]


def names(value: Any) -> str | None:
    return "-".join(str(v) if k == "op" else k for k, v in value.items()) if isinstance(value, Mapping) else None


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all", "lengths"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("variant", VARIANTS, ids=names)
@pytest.mark.parametrize("given", [{}, {"bias": False}, {"initial": False}], ids=["full", "no_bias", "no_initial"])
def test_vjp(variant, direction, lengths, given):
    check(case(**variant, direction=direction, lengths=lengths, **given))


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("steps", [1, 40])
@pytest.mark.parametrize("variant", VARIANTS, ids=names)
def test_short_and_long(variant, steps, samples):
    check(case(**variant, steps=steps, samples=samples, direction="bidirectional"))


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all", "lengths"])
@pytest.mark.parametrize("used", [[0], [1], [2], [0, 2], [1, 2]])
@pytest.mark.parametrize("variant", VARIANTS[:4], ids=names)
def test_some_outputs(variant, used, lengths):
    if variant["op"] == "LSTM" or 2 not in used:
        check(case(**variant, used=used, direction="bidirectional", lengths=lengths))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_sequence_of_no_steps(op, direction):
    check(case(op, direction=direction, lengths=np.array([0, 7, 4], np.int32)))


@pytest.mark.parametrize("given", [True, False], ids=["numbers", "defaults"])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("variant", VARIANTS[:4], ids=names)
def test_activation(variant, name, given):
    per_way = {"RNN": 1, "GRU": 2, "LSTM": 3}[variant["op"]]
    sorts = ("alpha", "beta")[: NUMBERS.get(name, 0)]
    numbers = {f"activation_{sort}": [0.8, 0.6, 0.7][:per_way] for sort in sorts if given}
    check(case(**variant, activations=[name] * per_way, scale=0.3, **numbers))


def test_every_activation_has_a_case():
    assert set(FUNCTIONS) == set(recurrent.FUNCTIONS)


def test_numbers_go_to_the_functions_that_have_some():
    check(
        case(
            "LSTM",
            direction="bidirectional",
            activations=["Sigmoid", "LeakyRelu", "Tanh", "HardSigmoid", "ScaledTanh", "Affine"],
            activation_alpha=[0.1, 0.3, 0.9, 0.7],
            activation_beta=[0.45, 1.2, 0.05],
        )
    )


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all", "lengths"])
@pytest.mark.parametrize("variant", VARIANTS, ids=names)
def test_clip(variant, lengths):
    check(case(**variant, clip=0.5, direction="bidirectional", lengths=lengths))


@pytest.mark.parametrize("variant", VARIANTS, ids=names)
def test_finite_differences_of_the_kernel(variant):
    made = case(**variant, steps=3, samples=2, direction="bidirectional", lengths=np.array([3, 2], np.int32), scale=0.5)
    check_vjp(replace(made, runtime=True, tolerance=1e-3))  # differences of float32 numbers; 0.1 % is seen elsewhere


def torch_order(op: str, tensor: torch.Tensor) -> Array:
    """torch's order of the gates, i f g o and r z n, to ONNX's, i o f c and z r h."""
    parts = tensor.detach().chunk(GATES[op])
    order = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}[op]
    return torch.cat([parts[k] for k in order]).numpy()


@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize("op", GATES)
def test_torch_layer(op, ways):
    torch.manual_seed(0)
    layer = getattr(torch.nn, op)(4, 5, bidirectional=ways == 2)
    suffixes = ("", "_reverse")[:ways]
    w, r, b_x, b_h = (
        np.stack([torch_order(op, getattr(layer, f"{kind}_l0{suffix}")) for suffix in suffixes])
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    x = rng().normal(size=(9, 2, 4)).astype(np.float32)
    attrs: dict[str, Any] = {"hidden_size": 5, "direction": DIRECTIONS[0 if ways == 1 else 2]}
    if op == "GRU":
        attrs["linear_before_reset"] = 1
    made = Case(op, [x, w, r, np.concatenate([b_x, b_h], 1)], attrs, [1, 2, 3])
    point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    y = layer.double()(point)[0].reshape(9, 2, ways, 5).transpose(1, 2)
    ct = rng(1).normal(size=tuple(y.shape)).astype(np.float32)
    (y * torch.tensor(ct)).sum().backward()
    assert relative_error(gradients(made, {"y0": ct})["x0"], point.grad) < TOLERANCE


def count(op: str, steps: int) -> int:
    made = case(op, steps=steps, constant=[1, 2, 3])
    proto, feeds = single_node(made, free=False)
    graph = gradient_graph(to_graph(proto), {"y0": np.zeros((steps, 1, 3, 5), np.float32)}, list(feeds))
    return sum(1 + sum(len(body.nodes) for body in node.subgraphs) for node in graph.nodes)


@pytest.mark.parametrize("op", GATES)
def test_nothing_is_unrolled(op):
    assert count(op, 40) == count(op, 7) < 100


CLASSIFIER = """classifier (float[N,T,4] x) => (float[N,3] y) {
    time_first = Transpose<perm=[1,0,2]>(x)
    %s = %s<hidden_size=6, direction="%s">(time_first, w, r, b)
    samples_first = Transpose<perm=[1,0,2]>(state)
    flat = Flatten(samples_first)
    y = Gemm(flat, v, c)
}"""


def classifier(op: str, direction: str, outputs: str = "all, state") -> onnx.ModelProto:
    ways, rows = 2 if direction == "bidirectional" else 1, GATES[op] * 6
    shapes = {"w": (ways, rows, 4), "r": (ways, rows, 6), "b": (ways, 2 * rows), "v": (6 * ways, 3), "c": (3,)}
    return model(CLASSIFIER % (outputs, op, direction), **weights(**shapes))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_integrated_gradients_are_complete(op, direction):
    x = rng().normal(size=(3, 12, 4)).astype(np.float32)
    result = ox.explain(classifier(op, direction), x, "integrated_gradients", steps=64)
    np.testing.assert_allclose(result.residual, 0, atol=1e-4)


@pytest.mark.parametrize("outputs", ["all, state", ", state"], ids=["all_states", "last_state_only"])
@pytest.mark.parametrize("op", GATES)
def test_classifier_by_differences(op, outputs):
    proto = classifier(op, "bidirectional", outputs)
    run = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run
    random = rng()
    for steps in (1, 30):
        x, along = (random.normal(size=(2, steps, 4)).astype(np.float32) for _ in range(2))
        step = np.float32(2**-7)
        ends = [run(None, {"x": x + sign * step * along})[0][:, 1].astype(np.float64) for sign in (1, -1)]
        result = ox.explain(proto, x, "gradient", target=1)
        np.testing.assert_allclose(
            (result.values * along).sum((1, 2)), (ends[0] - ends[1]) / (2 * step), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("method", ["gradient", "integrated_gradients"])
@pytest.mark.parametrize("op", GATES)
def test_exported_explainer(op, method, tmp_path):
    explainer = ox.Explainer(ox.load(classifier(op, "bidirectional")), method)
    explainer.export(tmp_path / "explainer.onnx", target=2)
    session = onnxruntime.InferenceSession(tmp_path / "explainer.onnx", providers=["CPUExecutionProvider"])
    for steps in (1, 20):
        x = rng(steps).normal(size=(2, steps, 4)).astype(np.float32)
        (values,) = session.run(["attribution"], {"x": x})
        assert relative_error(values, explainer(x, target=2).values) < 1e-5
