#!/usr/bin/env python3
"""Explain deployed models, and test whether hiding the most relevant part of the input changes the prediction.

The models are taken from wheels that their vendors publish; pip downloads wheels that are missing in the cache folder
(as `pip download --no-deps nudenet==3.4.2` does). For each question and method, the table has the score, and the score
that remains when the most relevant part of the input is hidden, when as much is hidden at random (mean and lowest of
20 draws), and when the least relevant part is hidden. ``truth`` is given where the evidence must lie in a known
region: the share of the attribution's magnitude in that region, and the region's share of the input. Pictures go into
a folder.

An attribution whose most relevant part matters no more than the luckiest random draw explains nothing; such rows are
marked with "no". Guided backprop has some: it acts at Relu, which the detector does not have and the recogniser has
few of. The question about columns needs skl2onnx.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import skimage.data
from corpus import Case, extract, session_of
from rich.console import Console
from rich.table import Table

import onnxplain as ox
from onnxplain.imaging import heatmap

Array = np.ndarray[Any, Any]
Methods = dict[str, dict[str, Any]]

DRAWS = 20
COLUMNS = ("question", "method", "hidden", "score", "most relevant", "at random", "least relevant", "truth", "holds")


@dataclass(frozen=True)
class Question:
    """A question to a model.

    Attributes
    ----------
    question
        The question in words.
    model, x, target
        The model, a batch with one sample, and the explained class or quantity.
    feeds
        Arrays for the model's other inputs.
    score
        Function from a batch of inputs to the model's scores, (N,), in plain ONNX Runtime, as users see them.
    baseline
        Values that replace hidden elements; broadcasts to a sample.
    cells
        Array of a sample's shape: number of the part that each element belongs to. Parts are hidden as a whole.
    truth
        Array of a sample's shape: True in the region where the evidence must lie; None if that is unknown.
    methods
        Method -> options.
    part
        Share of the cells that is hidden.
    draw
        Function of (attribution of the sample, file without ending) that writes a picture.
    """

    question: str
    model: ox.Model
    x: Array
    target: Any
    score: Callable[[Array], Array]
    baseline: Array
    cells: Array
    methods: Methods
    draw: Callable[[Array, Path], None]
    feeds: dict[str, Array] = field(default_factory=dict)
    truth: Array | None = None
    part: float = 0.1

    def values(self, method: str) -> Array:
        """Return the attribution of the sample."""
        name = self.model.inputs[0].name
        asked: dict[str, Any] = {"wrt": name} if self.feeds else {}
        feeds = {name: self.x, **self.feeds}
        result = ox.explain(self.model, feeds, method, target=self.target, **self.methods[method], **asked)
        return np.asarray(np.broadcast_to(result.values[0], self.x.shape[1:]), np.float64)

    def rows(self, folder: Path) -> Iterator[tuple[str, ...]]:
        """Yield the rows of the table, one per method."""
        random = np.random.default_rng(0)
        count = int(self.cells.max()) + 1
        hidden = max(1, round(self.part * count))
        draws = [random.permutation(count)[:hidden] for _ in range(DRAWS)]
        by_chance = self.without(draws)
        score = float(self.score(self.x)[0])
        for method in self.methods:
            values = self.values(method)
            order = np.argsort(np.bincount(self.cells.ravel(), values.ravel()))
            most, least = self.without([order[-hidden:], order[:hidden]])
            chance = f"{by_chance.mean():.3f} ({by_chance.min():.3f})"
            left = [f"{score:.3f}", f"{most:.3f}", chance, f"{least:.3f}"]
            holds = "yes" if most < by_chance.min() else "[red]no[/]"
            yield self.question, method, f"{hidden} of {count}", *left, self.hit(values), holds
            self.draw(values, folder / f"{re.sub(r'[^a-z]+', '_', self.question.split(':')[0])}_{method}")

    def without(self, sets: list[Array]) -> Array:
        """Return the scores with sets of cells hidden."""
        copies = [np.where(np.isin(self.cells, some), self.baseline, self.x[0]).astype(self.x.dtype) for some in sets]
        return np.concatenate([self.score(copy[None]) for copy in copies])

    def hit(self, values: Array) -> str:
        """Return the share of the attribution's magnitude in the true region."""
        if self.truth is None:
            return ""
        inside = np.abs(values)[self.truth].sum() / np.abs(values).sum()
        return f"{inside:.0%} in {self.truth.mean():.0%}"


def grid(shape: tuple[int, ...], size: tuple[int, int]) -> Array:
    """Return the number of the rectangular cell of each pixel; channels share cells."""
    rows, columns = (np.arange(n) // s for n, s in zip(shape[-2:], size, strict=True))
    return np.broadcast_to(rows[:, None] * (columns.max() + 1) + columns, shape)


def inside(shape: tuple[int, ...], left: float, top: float, right: float, bottom: float) -> Array:
    """Return which elements of a picture are in a box."""
    rows, columns = (np.arange(n) for n in shape[-2:])
    box = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
    return np.broadcast_to(box, shape)


def detector(cache: Path) -> Question:
    """Questions to a YOLO detector: its output has 4 coordinates and 18 class probabilities for each of 2100 places."""
    path = extract(Case("nudenet==3.4.2", "nudenet/320n.onnx", dict), cache)
    session, model = session_of(str(path)), ox.load(path)
    names = ast.literal_eval(session.get_modelmeta().custom_metadata_map["names"])
    photo = cv2.resize(skimage.data.astronaut(), (320, 320), interpolation=cv2.INTER_AREA)
    x = np.ascontiguousarray(photo.transpose(2, 0, 1)[None], np.float32) / 255
    found = session.run(None, {"images": x})[0][0]
    kind, place = np.unravel_index(found[4:].argmax(), found[4:].shape)
    middle, size = found[:2, place], found[2:4, place]
    box = (*(middle - size / 2), *(middle + size / 2))
    grey = x.mean(axis=(0, 2, 3), keepdims=True)[0]

    def draw(values: Array, path: Path) -> None:
        picture = heatmap.picture(values, photo)
        heatmap.save(path.with_suffix(".png"), heatmap.with_boxes(picture, [(*box, names[kind].lower())]))

    return Question(
        question=f"detector: why {names[kind].lower()} in this box",
        model=model,
        x=x,
        target=(int(4 + kind), int(place)),
        score=lambda batch: session.run(None, {"images": batch})[0][:, 4 + kind, place],
        baseline=grey,
        cells=grid(x.shape[1:], (16, 16)),
        truth=inside(x.shape[1:], *box),
        methods={
            "occlusion": {"window": 32, "stride": 16, "baseline": grey},
            "rise": {"samples": 600, "center": True, "cells": 10, "baseline": grey},
            "integrated_gradients": {"calibrate": True, "steps": 64, "baseline": grey},
            "gradient_x_input": {},
            "guided_backprop": {},
        },
        draw=draw,
    )


def recogniser(cache: Path) -> Question:
    """A question to a text recogniser: its output has the probability of each character per column of the line."""
    path = extract(Case("rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_rec_small.onnx", dict), cache)
    session, model = session_of(str(path)), ox.load(path)
    known = ["", *session.get_modelmeta().custom_metadata_map["character"].splitlines(), " "]
    text, wanted, size, font = "Cats or dogs", 8, 1.0, cv2.FONT_HERSHEY_SIMPLEX
    start, stop = (4 + cv2.getTextSize(text[:n], font, size, 2)[0][0] for n in (wanted, wanted + 1))
    line = np.full((48, 4 + cv2.getTextSize(text, font, size, 2)[0][0] + 8, 3), 255, np.uint8)
    cv2.putText(line, text, (4, 34), font, size, (20, 20, 20), 2, cv2.LINE_AA)
    grainy = np.clip(line + np.random.default_rng(0).normal(-12, 4, line.shape), 0, 255).astype(np.uint8)
    x = (grainy.transpose(2, 0, 1)[None].astype(np.float32) / 255 - 0.5) / 0.5
    steps = session.run(None, {"x": x})[0][0]
    best = steps.argmax(axis=1)
    firsts = [t for t, c in enumerate(best) if c and (t == 0 or best[t - 1] != c)]
    read = "".join(known[best[t]] for t in firsts)
    if read != text:
        raise SystemExit(f"the recogniser reads {read!r} where {text!r} is written")
    step = firsts[wanted]
    while best[step + 1] == best[step] and steps[step + 1].max() > steps[step].max():
        step += 1
    letter = int(best[step])
    paper = np.median(x, axis=(0, 2, 3)).reshape(3, 1, 1)

    def draw(values: Array, path: Path) -> None:
        large = cv2.resize(grainy, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
        picture = heatmap.picture(cv2.resize(values.sum(axis=0), large.shape[1::-1])[None], large)
        heatmap.save(path.with_suffix(".png"), heatmap.with_boxes(picture, [(start * 3, 0, stop * 3, 144)]))

    return Question(
        question=f"recogniser: why '{known[letter]}' at column {step} of '{read}'",
        model=model,
        x=x,
        target=(step, letter),
        score=lambda batch: session.run(None, {"x": batch})[0][:, step, letter],
        baseline=paper,
        cells=grid(x.shape[1:], (8, 8)),
        truth=inside(x.shape[1:], start, 0, stop, 48),
        methods={
            "occlusion": {"window": (48, 8), "stride": (48, 4), "baseline": paper},
            "rise": {"samples": 600, "center": True, "cells": 12, "keep": 0.7, "baseline": paper},
            "integrated_gradients": {"calibrate": True, "baseline": paper},
            "gradient_x_input": {},
            "guided_backprop": {},
        },
        part=0.04,
        draw=draw,
    )


def vowel(count: int) -> Array:
    """Return an "a" at 16 kHz: harmonics of 120 Hz, shaped by a vocal tract, with vibrato."""
    time = np.arange(count) / 16000
    phase = 2 * np.pi * np.cumsum(120 * (1 + 0.03 * np.sin(2 * np.pi * 5 * time))) / 16000
    formants = ((700, 110), (1220, 120), (2600, 160))  # frequency and width
    strength = {k: sum(1 / (1 + ((120 * k - f) / w) ** 2) for f, w in formants) / k**0.5 for k in range(1, 30)}
    wave = sum(s * np.sin(k * phase) for k, s in strength.items())
    return np.asarray(wave / np.abs(wave).max() * np.hanning(count) ** 0.3)


WINDOW, CONTEXT, WINDOWS = 512, 64, 24
SPOKEN = slice(4800, 9600)


def recording_model(path: Path) -> onnx.ModelProto:
    """Return the voice detector on a whole recording: an LSTM sees overlapping windows in order."""
    model = onnx.load(path)
    starts = WINDOW * np.arange(WINDOWS)[:, None]
    constants = {"index": starts + np.arange(WINDOW + CONTEXT), "row": np.array([0])}
    constants |= {name: np.zeros((1, 1, 128), np.float32) for name in ("h", "c")}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in constants.items())
    model.graph.node.insert(0, onnx.helper.make_node("Gather", ["line", "index"], ["input"]))
    model.graph.node.insert(0, onnx.helper.make_node("Squeeze", ["wave", "row"], ["line"]))
    model.graph.node.append(onnx.helper.make_node("Unsqueeze", ["speech_probs", "row"], ["speech"]))
    del model.graph.input[:], model.graph.output[:]
    kind = onnx.TensorProto.FLOAT
    length = CONTEXT + WINDOW * WINDOWS
    model.graph.input.append(onnx.helper.make_tensor_value_info("wave", kind, [1, length]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("speech", kind, [1, WINDOWS]))
    return model


def voice(cache: Path) -> Question:
    """The question why 0.352 s to 0.384 s are speech, in silence with a vowel from 0.3 s to 0.6 s.

    The window is soon after the beginning. In the middle of the vowel, no sixteenth of a second matters: hiding one
    creates a new end and a new beginning, which are as much like speech.
    """
    file = "silero_vad/data/silero_vad_16k_sequence.onnx"
    proto = recording_model(extract(Case("silero-vad==6.2.3", file, dict), cache))
    session = session_of(proto.SerializeToString())
    wave = np.random.default_rng(0).normal(size=WINDOW * WINDOWS) * 1e-3
    wave[SPOKEN] += 0.3 * vowel(SPOKEN.stop - SPOKEN.start)
    x = np.concatenate([np.zeros(CONTEXT), wave]).astype(np.float32)[None]
    window = 11
    spoken = np.zeros(x.shape[1], bool)
    spoken[CONTEXT + SPOKEN.start : CONTEXT + WINDOW * (window + 1)] = True  # later samples are not known yet

    def draw(values: Array, path: Path) -> None:
        heatmap.save(path.with_suffix(".png"), heatmap.waveform(values, x[0]))

    return Question(
        question=f"voice: what made {window * WINDOW / 16000:.3f} s speech",
        model=ox.load(proto),
        x=x,
        target=window,
        score=lambda batch: session.run(None, {"wave": batch})[0][:, window],
        baseline=np.zeros(1, np.float32),
        cells=np.arange(x.shape[1]) // 256,
        truth=spoken,
        methods={
            "occlusion": {"window": 512, "stride": 256},
            "kernel_shap": {"features": np.arange(x.shape[1]) // 256, "samples": 2000},
            "integrated_gradients": {"calibrate": True},
            "gradient_x_input": {},
            "lrp": {},
        },
        draw=draw,
    )


def bytes_of(name: str, content: bytes, cache: Path, part: float) -> Question:
    """The question why a file is of its type, for a model that reads the 1024 bytes of its beginning and of its end."""
    folder = "magika/models/standard_v3_3"
    path, config = (extract(Case("magika==1.0.3", f"{folder}/{f}", dict), cache) for f in FILES)
    labels = json.loads(config.read_text())["target_labels_space"]
    session, model = session_of(str(path)), ox.load(path)
    content = content.strip()
    beginning, end = list(content[:1024]), list(content[-1024:])
    padding = [256] * (1024 - len(beginning))
    x = np.array([[*beginning, *padding, *padding, *end]], np.int32)
    label = int(session.run(None, {"bytes": x})[0][0].argmax())

    def draw(values: Array, path: Path) -> None:
        page = heatmap.page(f"{name}: {labels[label]}", heatmap.html(values, heatmap.characters(x[0])))
        path.with_suffix(".html").write_text(page)

    return Question(
        question=f"bytes of {name}: why {labels[label]}",
        model=model,
        x=x,
        target=label,
        score=lambda batch: session.run(None, {"bytes": batch})[0][:, label],
        baseline=np.array([256]),
        cells=np.arange(2048) // 8,
        methods={
            "occlusion": {"window": 16, "stride": 8, "baseline": 256},
            "integrated_gradients": {"calibrate": True, "baseline": 256},
            "kernel_shap": {"features": np.arange(2048) // 8, "samples": 1500, "baseline": 256},
        },
        part=part,
        draw=draw,
    )


FILES = ("model.onnx", "config.min.json")


def png(cache: Path) -> Question:
    """The question about a picture file."""
    return bytes_of("cat.png", (Path(__file__).parent.parent / "models" / "cat.png").read_bytes(), cache, 0.02)


def python(cache: Path) -> Question:
    """The question about a Python source, of which much must be hidden, as all of it is typical of Python."""
    return bytes_of("examples.py", Path(__file__).read_bytes(), cache, 0.4)


QUESTIONS = {"detector": detector, "recogniser": recogniser, "voice": voice, "png": png, "python": python}


def main() -> None:
    """Run the command line."""
    known = [*QUESTIONS, "columns"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(known)}; default: all")
    parser.add_argument("--cache", type=Path, default=Path("build/corpus"), help="folder for wheels and models")
    parser.add_argument("--out", type=Path, default=Path("build/examples"), help="folder for pictures")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in known:
            parser.error(f"there is no question '{name}', only {', '.join(known)}")
    for folder in (arguments.cache, arguments.out):
        folder.mkdir(parents=True, exist_ok=True)
    progress, console = Console(stderr=True, log_path=False), Console(width=None if sys.stdout.isatty() else 200)
    table = Table(*COLUMNS)
    for name in arguments.names or QUESTIONS:
        if name in QUESTIONS:
            progress.log(name)
            for row in QUESTIONS[name](arguments.cache).rows(arguments.out):
                table.add_row(*row)
    if table.row_count:
        console.print(table)
    if not arguments.names or "columns" in arguments.names:
        progress.log("columns")
        console.print(importlib.import_module("columns").table(arguments.out))  # only it needs skl2onnx
    print(f"pictures: {arguments.out}")


if __name__ == "__main__":
    main()
