"""The influence command: the units of a layer with the most influence, over a folder or an array of inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np

import onnxplain as ox
from onnxplain.cli import inputs, options, show
from onnxplain.concepts.units import Sign
from onnxplain.errors import InputError
from onnxplain.imaging.preprocessing import Note

Array = np.ndarray[Any, Any]

PHOTOS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
BATCH = 8  # photos per batch


@click.command(short_help="Find the units of a layer with the most influence over a data set.")
@click.argument("model", type=options.PATH)
@click.argument("data", type=options.PATH)
@click.option(
    "--at", required=True, help="Internal tensor whose units are ranked; 'onnxplain inspect --tensors' lists them."
)
@options.method(required=True, default="gradient")
@click.option(
    "--target", help="Class number or name, or index into the output. Default: the predicted class of each sample."
)
@options.quantity()
@options.labels
@click.option("--output", help="Model output to explain. Default: the first floating-point one.")
@click.option("--probability", is_flag=True, help="Explain the value after a final softmax or sigmoid, not before.")
@click.option(
    "--axis",
    type=int,
    multiple=True,
    help="Number of an axis that tells units apart, with the batch axis counted; repeatable. Default: the channels.",
)
@click.option("--top", default=10, show_default=True, type=click.IntRange(min=1), help="Number of units to show.")
@click.option(
    "--sign",
    default="both",
    show_default=True,
    type=click.Choice(get_args(Sign)),
    help="Rank units by magnitude, or only those of one sign.",
)
@click.option(
    "--carried", is_flag=True, help="Also measure how much of the score the top units carry. Reads DATA a second time."
)
@options.photos()
@options.running()
@options.cache
@options.as_json
def influence(
    model: Path,
    data: Path,
    at: str,
    method: str,
    params: tuple[str, ...],
    target: str | None,
    versus: str | None,
    of: str | None,
    labels: Path | None,
    output: str | None,
    probability: bool,
    axis: tuple[int, ...],
    top: int,
    sign: Sign,
    carried: bool,
    providers: tuple[str, ...],
    memory: str,
    cache: Path | None,
    as_json: bool,
    **photo_options: Any,
) -> None:
    """Find the units of an internal tensor of MODEL with the most influence on a prediction, averaged over DATA.

    DATA is a folder of photos, .npy and .npz files, or one such file. Each array is a batch; .npy files are read piece
    by piece and need not fit in memory. Photos are prepared as for 'explain'.
    """
    with show.progress(method) as step:
        loaded = ox.load(model, cache)
        note = inputs.note_of(loaded)
        names = inputs.class_names(labels, note, loaded, output)
        inputs.check_names(names, loaded, output)
        quantity = options.parse_quantity(target, versus, of, names)
        method_options = inputs.with_bounds(inputs.noted_preprocessing(loaded, note), method, options.parse(params))
        files = _files(data)
        photos = {key: value for key, value in photo_options.items() if value is not None}
        count = len(files) if all(file.suffix.lower() in PHOTOS for file in files) else None

        def progress(done: int, total: int | None) -> None:
            step(done, total or count)

        result = ox.influence(
            loaded,
            _read(loaded, note, files, photos),
            at,
            quantity,
            method,
            axis=axis or None,
            output=output,
            probability=probability,
            providers=inputs.providers(providers),
            memory=memory,
            progress=progress,
            **method_options,
        )
        again = _read(loaded, note, files, photos)
        shares = result.carried(again, sign=sign, progress=progress) if carried else None
    show.influence(result, _called(target, versus, of, names), top, sign, shares, as_json)


def _called(target: str | None, versus: str | None, of: str | None, names: Sequence[str] | None) -> str:
    """Describe what is explained, with the names of classes."""

    def one(text: str | None) -> str:
        if of:
            return f"'{of}' at {text}"
        number = options.parse_target(text, names)
        name = show.label(number, names)
        return "predicted class" if number is None else f"class {number} ({name})" if name else f"class {text}"

    return one(target) if versus is None else f"{one(target)} rather than {one(versus)}"


def _files(path: Path) -> list[Path]:
    """List the file, or the photos and arrays in the folder, sorted by name."""
    if not path.is_dir():
        return [path]
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in PHOTOS or f.suffix in inputs.ARRAYS)
    if not files:
        raise InputError(
            f"'{path}' holds neither photos nor arrays", f"Known endings: {', '.join(PHOTOS)}, .npy and .npz."
        )
    return files


def _read(model: ox.Model, note: Note | None, files: Sequence[Path], photos: Mapping[str, Any]) -> Any:
    """Return a single .npy file as an array, whose size is known, and everything else as an iterator of batches."""
    if len(files) == 1 and files[0].suffix == ".npy":
        inputs.check_unprepared(files[0], photos)
        return inputs.load_array(files[0], mapped=True)
    return _batches(model, note, files, photos)


def _batches(model: ox.Model, note: Note | None, files: Sequence[Path], photos: Mapping[str, Any]) -> Iterator[Any]:
    waiting: list[Array] = []
    for file in files:
        if file.suffix == ".npy":
            yield inputs.load_array(file, mapped=True)
        elif file.suffix == ".npz":
            yield inputs.prepare(model, note, file, {}).arrays
        else:
            photo = np.asarray(inputs.prepare(model, note, file, photos).arrays)
            if waiting and (len(waiting) == BATCH or photo.shape != waiting[0].shape):
                yield np.concatenate(waiting)
                waiting = []
            waiting.append(photo)
    if waiting:
        yield np.concatenate(waiting)
