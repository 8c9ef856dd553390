"""Any model becomes one canonical `Graph`: opset 21, folded, inlined, batch free where possible.

`passes` lists the steps, with what each of them requires and ensures. Large weights take no part in this: they are
views on the model's bytes, with stubs in their places.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from onnxplain.canonize import cache
from onnxplain.canonize.canonical import Canonical
from onnxplain.canonize.labels import labels_of
from onnxplain.canonize.passes import passed
from onnxplain.storage.reader import Source


def canonize(source: Source, sizes: Mapping[str, int] | None = None, folder: Path | None = None) -> Canonical:
    """Bring a model into canonical form.

    Parameters
    ----------
    source
        The parsed model.
    sizes
        Sizes for free dimensions, by their names as in `prepare.named_inputs`; the other dimensions stay free.
    folder
        Folder of canonical graphs from earlier calls (see `cache`); the result is read from it, or stored in it.

    Raises
    ------
    OptionError
        ``sizes`` names a dimension that is not free.
    ModelError
        ONNX Runtime cannot load the model, or an operator has no opset-21 form.
    """
    return cache.cached(folder, source, sizes or {}, _canonize) if folder else _canonize(source, sizes or {})


def _canonize(source: Source, sizes: Mapping[str, int]) -> Canonical:
    final = passed(source, sizes)
    return Canonical(final.graph, final.fixed_batch, tuple(final.changes), labels_of(source.proto, final.graph))


__all__ = ["Canonical", "canonize"]
