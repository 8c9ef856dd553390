"""The explain command: the attribution of one input, as a picture, a page or an array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

import onnxplain as ox
from onnxplain.cli import drawing, inputs, options, show
from onnxplain.errors import OptionError
from onnxplain.storage import atomic


@click.command(short_help="Explain the prediction for an input, and draw the explanation.")
@click.argument("model", type=options.PATH)
@click.argument("input", type=options.PATH)
@options.method(required=True)
@click.option(
    "--target", help="Class number or name, or index into the output (4,10,12). Default: the predicted class."
)
@options.quantity()
@options.labels
@options.ask()
@options.out_of_explain
@click.option(
    "--sample", default=0, show_default=True, help="Number of the sample, from 0, that a picture of a batch shows."
)
@click.option(
    "--report",
    is_flag=True,
    help="Show the rule of each node, and the relevance or gradient that it received and passed on.",
)
@options.drawn
@click.option("--plain", is_flag=True, help="Draw the heatmap alone instead of over the photo.")
@options.photos()
@options.running()
@options.cache
@options.as_json
def explain(
    model: Path,
    input: Path,
    method: str,
    params: tuple[str, ...],
    target: str | None,
    versus: str | None,
    of: str | None,
    labels: Path | None,
    out: Path | None,
    sample: int,
    report: bool,
    tokens: str | None,
    names: Path | None,
    plain: bool,
    providers: tuple[str, ...],
    memory: str,
    cache: Path | None,
    as_json: bool,
    **photo_options: Any,
) -> None:
    """Explain the prediction of MODEL for INPUT, and write the explanation as a picture, a page or an array.

    INPUT is a photo, or a batch of arrays (.npy, .npz) that goes into the model as it is. A photo is prepared by the
    options --preset, --mean, --std, --scale ..., or else by the model's preprocessing note: a file
    MODEL.preprocessing.json next to it, or 'onnxplain.preprocessing' in its metadata.

    The command prints what was explained and its score. For methods that promise what the attributions sum to, it also
    prints the residual: their sum minus that value. For texts and tables it lists the tokens or columns with the
    largest attributions.

    The picture depends on the input: a photo with a heatmap over it, bars for a table, a waveform for (N, T) or
    (N, C, T), slices of a volume (N, C, D, H, W).
    """
    question = {key: photo_options.pop(key) for key in options.ASK}
    out = out or Path(f"{input.stem}_{method}{input.suffix if input.suffix in inputs.ARRAYS else '.png'}")
    options.check_out(out, {*drawing.PICTURES, ".html", *inputs.ARRAYS}, input, model)
    given = {name: value for name, value in photo_options.items() if value is not None}
    with show.progress(method) as step:
        loaded = ox.load(model, cache)
        note = inputs.note_of(loaded)
        prepared = inputs.prepare(loaded, note, input, given)
        classes = inputs.class_names(labels, note, loaded, question["output"])
        method_options = inputs.with_bounds(prepared.preprocessing, method, options.parse(params))
        running = {"providers": inputs.providers(providers), "memory": memory}
        explainer = inputs.explainer(loaded, method, question, method_options | running)
        _check_one(out, explainer)
        drawn = drawing.plan(out, _explained(explainer, prepared, question["at"]), sample, tokens, names)
        inputs.check_names(classes, loaded, question["output"])
        quantity = options.parse_quantity(target, versus, of, classes)
        result = explainer(prepared.arrays, quantity, progress=step)
        photo, layout = None if plain else prepared.photo, None if question["at"] else prepared.layout
        _write(result, out, sample, drawn, photo, layout)
    show.result(
        result,
        out=out,
        sample=sample,
        classes=classes,
        explainer=explainer,
        prepared=prepared,
        report=result.report() if report else None,
        drawn=drawn,
        as_json=as_json,
        quantity=f"'{of}' at {target}" if of else None,
        compared=versus is not None,
    )


def _check_one(out: Path, explainer: ox.Explainer) -> None:
    """Raise OptionError for several attributions and a file that holds only one: not .npz."""
    if out.suffix != ".npz" and len(explainer.model.inputs) > 1 and len(explainer.explained) > 1:
        raise OptionError(
            f"several inputs get an attribution ({', '.join(explainer.explained)}), and '{out}' holds one",
            "Choose with --wrt, or write .npz.",
        )


def _explained(explainer: ox.Explainer, prepared: inputs.PreparedInput, at: str | None) -> inputs.Array | None:
    """Array of the input that gets the attribution; None for an internal tensor, or for several inputs."""
    if at:
        return None
    if not isinstance(prepared.arrays, dict):
        return prepared.arrays
    names = explainer.explained if len(prepared.arrays) > 1 else tuple(prepared.arrays)
    return prepared.arrays.get(names[0]) if len(names) == 1 else None


def _write(
    result: ox.Attribution,
    out: Path,
    sample: int,
    drawn: drawing.Drawing,
    photo: inputs.Array | None,
    layout: str | None,
) -> None:
    if out.suffix == ".npz":
        with atomic.replacing(out) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **{name: result[name].values for name in result.names})
    elif drawn.options:
        result.save(out, sample=sample, **drawn.options)
    else:
        image = photo if result.values.ndim == 4 else None
        result.save(out, image=image, sample=sample, layout={"NHWC": "HWC", "NCHW": "CHW"}.get(layout or "", "auto"))
