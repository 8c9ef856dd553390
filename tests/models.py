"""Tiny models for tests, one per feature that needs testing: as protobufs, in float32 or float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx.reference import ReferenceEvaluator

from tests.reference import rng

Array = np.ndarray[Any, Any]


def model(text: str, double: bool = False, opset: int = 21, **weights: Array) -> onnx.ModelProto:
    """Parse a model from onnx's textual form; ``double`` turns every float into a float64."""
    imports = f'<ir_version: 8, opset_import: ["" : {opset}]>\n'
    proto = onnx.parser.parse_model(imports + (text.replace("float[", "double[") if double else text))
    for name, array in weights.items():
        array = array.astype(np.float64 if double else np.float32) if array.dtype.kind == "f" else array
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def weights(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, Array]:
    """Draw random float32 weights, scaled so that activations stay near 1."""
    random = rng(seed)
    scale = {name: 1 / max(1, np.prod(shape[1:])) ** 0.5 for name, shape in shapes.items()}
    return {n: (scale[n] * random.normal(size=s)).astype(np.float32) for n, s in shapes.items()}


def labelled() -> onnx.ModelProto:
    """Return a model with an output of class labels."""
    text = """labelled (float[N,6] x) => (int64[N] label, float[N,3] y) {
        label, y = ai.onnx.ml.LinearClassifier
            <coefficients = %s, intercepts = [0.5, 0.0, 1.0], classlabels_ints = [4,5,6]>(x)
    }""" % [float(v) for v in range(18)]
    return onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]>\n' + text)


@dataclass(frozen=True)
class Tiny:
    """A model with a free batch axis.

    Attributes
    ----------
    text
        The model in onnx's textual form.
    weights
        Name of an initializer -> array.
    inputs
        Input name -> shape of one sample.
    output
        Shape of one sample's output.
    explained
        Name of the tensor that is explained by default: the logits, if the output holds probabilities.
    """

    text: str
    weights: Mapping[str, Array]
    inputs: Mapping[str, tuple[int, ...]]
    output: tuple[int, ...]
    explained: str = "y"

    def proto(self, double: bool = False, **changed: Array) -> onnx.ModelProto:
        return model(self.text, double, **{**self.weights, **changed})

    def feeds(self, samples: int, seed: int = 1) -> dict[str, Array]:
        random = rng(seed)
        return {n: random.normal(size=(samples, *s)).astype(np.float32) for n, s in self.inputs.items()}

    def x(self, samples: int, seed: int = 1) -> Any:
        """Return random samples as `onnxplain.explain` takes them: an array for one input, a dict for several."""
        feeds = self.feeds(samples, seed)
        return feeds if len(feeds) > 1 else feeds["x"]

    @cached_property
    def _evaluator(self) -> ReferenceEvaluator:
        return ReferenceEvaluator(self.proto(double=True))

    def evaluate(self, feeds: Mapping[str, Array], name: str = "") -> Array:
        """Evaluate a tensor, by default the explained one, in float64; flattened to one row per sample."""
        wide = {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in feeds.items()}
        array = self._evaluator.run([name or self.explained], wide)[0]
        return array.reshape(len(array), -1)

    def unbiased(self) -> onnx.ModelProto:
        """Return the model with all biases (names that start with b) set to zero."""
        return self.proto(**{n: a * 0 for n, a in self.weights.items() if n.startswith("b")})


MLP = Tiny(
    """mlp (float[N,6] x) => (float[N,4] y) {
        z = Gemm(x, w1, b1)
        h = Relu(z)
        y = Gemm(h, w2, b2)
    }""",
    weights(w1=(6, 8), b1=(8,), w2=(8, 4), b2=(4,)),
    {"x": (6,)},
    (4,),
)

IMAGES = Tiny(
    """images (float[N,2,9,8] x) => (float[N,5] y) {
        c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
        r1 = Relu(c1)
        p1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1)
        c2 = Conv(p1, w2, b2)
        r2 = Relu(c2)
        flat = Flatten(r2)
        y = Gemm(flat, w3, b3)
    }""",
    weights(w1=(3, 2, 3, 3), b1=(3,), w2=(4, 3, 3, 3), b2=(4,), w3=(16, 5), b3=(5,)),
    {"x": (2, 9, 8)},
    (5,),
)

RESIDUAL = Tiny(
    """residual (float[N,3,6,6] x) => (float[N,4] y) {
        c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
        r1 = Relu(c1)
        c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)
        sum = Add(c2, r1)
        r2 = Relu(sum)
        mean = GlobalAveragePool(r2)
        flat = Flatten(mean)
        y = Gemm(flat, w3, b3)
    }""",
    weights(w1=(4, 3, 3, 3), b1=(4,), w2=(4, 4, 3, 3), b2=(4,), w3=(4, 4), b3=(4,)),
    {"x": (3, 6, 6)},
    (4,),
)

TWO_INPUTS = Tiny(
    """two_inputs (float[N,4] a, float[N,3,2] b) => (float[N,3] y) {
        flat = Flatten(b)
        left = Gemm(a, w1, b1)
        right = Gemm(flat, w2, b2)
        sum = Add(left, right)
        h = Relu(sum)
        y = Gemm(h, w3, b3)
    }""",
    weights(w1=(4, 6), b1=(6,), w2=(6, 6), b2=(6,), w3=(6, 3), b3=(3,)),
    {"a": (4,), "b": (3, 2)},
    (3,),
)

SOFTMAX = Tiny(
    """softmax (float[N,6] x) => (float[N,4] y) {
        z = Gemm(x, w1, b1)
        h = Relu(z)
        logits = Gemm(h, w2, b2)
        y = Softmax<axis=1>(logits)
    }""",
    MLP.weights,
    {"x": (6,)},
    (4,),
    "logits",
)

SIGMOID = Tiny(
    """sigmoid (float[N,6] x) => (float[N,1] y) {
        z = Gemm(x, w1, b1)
        h = Tanh(z)
        logit = Gemm(h, w2, b2)
        y = Sigmoid(logit)
    }""",
    weights(w1=(6, 8), b1=(8,), w2=(8, 1), b2=(1,)),
    {"x": (6,)},
    (1,),
    "logit",
)

ONE_NUMBER = Tiny(
    """one_number (float[N,6] x) => (float[N] y) {
        z = Gemm(x, w1, b1)
        h = Relu(z)
        column = Gemm(h, w2, b2)
        axis = Constant<value_ints=[1]>()
        y = Squeeze(column, axis)
    }""",
    SIGMOID.weights,
    {"x": (6,)},
    (),
)

SEGMENTATION = Tiny(
    """segmentation (float[N,2,6,5] x) => (float[N,3,6,5] y) {
        c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
        r1 = Relu(c1)
        y = Conv<pads=[1,1,1,1]>(r1, w2, b2)
    }""",
    weights(w1=(4, 2, 3, 3), b1=(4,), w2=(3, 4, 3, 3), b2=(3,)),
    {"x": (2, 6, 5)},
    (3, 6, 5),
)

SIGNAL = Tiny(
    """signal (float[N,2,11] x) => (float[N,3] y) {
        c1 = Conv<strides=[2]>(x, w1, b1)
        r1 = Relu(c1)
        flat = Flatten(r1)
        y = Gemm(flat, w2, b2)
    }""",
    weights(w1=(3, 2, 3), b1=(3,), w2=(15, 3), b2=(3,)),
    {"x": (2, 11)},
    (3,),
)

VOLUME = Tiny(
    """volume (float[N,1,5,4,6] x) => (float[N,3] y) {
        c1 = Conv(x, w1, b1)
        r1 = Relu(c1)
        p1 = AveragePool<kernel_shape=[1,2,2]>(r1)
        flat = Flatten(p1)
        y = Gemm(flat, w2, b2)
    }""",
    weights(w1=(2, 1, 2, 2, 2), b1=(2,), w2=(64, 3), b2=(3,)),
    {"x": (1, 5, 4, 6)},
    (3,),
)

TINY = {
    "mlp": MLP,
    "images": IMAGES,
    "residual": RESIDUAL,
    "two_inputs": TWO_INPUTS,
    "softmax": SOFTMAX,
    "sigmoid": SIGMOID,
    "one_number": ONE_NUMBER,
    "segmentation": SEGMENTATION,
    "signal": SIGNAL,
    "volume": VOLUME,
}

FREE_SIZES = Tiny(  # height and width are known at run time only
    """free_sizes (float[N,2,H,W] x) => (float[N,4] y) {
        c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
        r1 = Relu(c1)
        p1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1)
        c2 = Conv<pads=[1,1,1,1]>(p1, w2, b2)
        r2 = Relu(c2)
        mean = GlobalAveragePool(r2)
        flat = Flatten(mean)
        y = Gemm(flat, w3, b3)
    }""",
    weights(w1=(3, 2, 3, 3), b1=(3,), w2=(4, 3, 3, 3), b2=(4,), w3=(4, 4), b3=(4,)),
    {"x": (2, 7, 6)},
    (4,),
)

FIXED_BATCH = Tiny(MLP.text.replace("float[N,", "float[1,"), MLP.weights, MLP.inputs, MLP.output)

TOKENS = Tiny(  # integers in, so only tensors behind the embedding can be explained
    """tokens (int64[N,5] x) => (float[N,3] y) {
        embedded = Gather(table, x)
        axis = Constant<value_ints=[1]>()
        mean = ReduceMean<keepdims=0>(embedded, axis)
        h = Tanh(mean)
        y = Gemm(h, w1, b1)
    }""",
    weights(table=(7, 4), w1=(4, 3), b1=(3,)),
    {"x": (5,)},
    (3,),
)

BRANCHES = Tiny(  # takes a second input, ``mode``: 0 or 1
    """branches (float[N,6] x, int64 mode) => (float[N,4] y) {
        z = Gemm(x, w1, b1)
        up = Cast<to=9>(mode)
        h = If(up) <
            then_branch = rise () => (float[N,8] r) { r = Relu(z) },
            else_branch = fall () => (float[N,8] t) { t = Tanh(z) }
        >
        y = Gemm(h, w2, b2)
    }""",
    MLP.weights,
    {"x": (6,)},
    (4,),
)

REPEATED = Tiny(
    """repeated (float[N,6] x) => (float[N,6] y) {
        total = ReduceMax<keepdims=0>(x)
        count = Cast<to=7>(total)
        go = Constant<value=bool {1}>()
        y = Loop(count, go, x) <
            body = step (int64 i, bool on, float[N,6] s) => (bool on_out, float[N,6] s_out) {
                on_out = Identity(on)
                t = MatMul(s, w1)
                s_out = Tanh(t)
            }
        >
    }""",
    weights(w1=(6, 6)),
    {"x": (6,)},
    (6,),
)
