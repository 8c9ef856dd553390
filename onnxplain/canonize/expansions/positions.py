"""Rotary and relative position encodings and embeddings of ONNX Runtime, as standard operators.

Shapes: B samples, N heads, S tokens (T keys if they differ from the queries).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxplain.canonize.expansions.fused import known_rank, standardized
from onnxplain.canonize.expansions.site import Expansion, Result, Site, StaysError
from onnxplain.graph.var import Var, concat, where

Lookup = Callable[[Var], Var]  # indices -> rows of a table


def length(x: Var) -> Var:
    """Number of tokens (size of axis 2), as a tensor of shape (1,)."""
    return x.emitter.op("Shape", x, known=(1,), start=2, end=3)


def count(site: Site, size: Var) -> Var:
    """Tensor [0, 1, ..., size - 1] for a size of shape (1,)."""
    zero, one = site.emitter.const(np.int64(0)), site.emitter.const(np.int64(1))
    return site.op("Range", zero, site.squeeze(size, 0), one, dtype="int64", known=(None,))


def apart(x: Var, heads: int) -> Var:
    """Split heads: shape (B, S, N * size) becomes (B, N, S, size)."""
    return x.reshape([0, 0, heads, -1]).transpose([0, 2, 1, 3])


@dataclass(frozen=True)
class Rotation:
    """Rotation of pairs (a, b) of elements by angles that depend on the position.

    Attributes
    ----------
    site
        The node to be expanded.
    tables
        Cosines and sines of the angles, with one row per position.
    positions
        Position of each token.
    interleaved
        1: a pair are two neighbours; 0: an element of the first half and one of the second.
    partial
        Whether the tables may be shorter than half of the elements; the last elements are then left unchanged.
    """

    site: Site
    tables: tuple[Var, Var]
    positions: Var
    interleaved: int
    partial: bool

    def __call__(self, x: Var) -> Var:
        """Rotate a tensor of shape (B, N, S, size)."""
        site, rest = self.site, []
        if self.partial:
            zero, last = site.emitter.ints([0]), site.emitter.ints([3])
            width, end = site.emitter.ints([self.width]), site.emitter.ints([np.iinfo(np.int64).max])
            x, rest = site.op("Slice", x, zero, width, last), [site.op("Slice", x, width, end, last)]
        cos, sin = map(self._rows, self.tables)
        if self.interleaved:
            pairs = x.reshape([0, 0, 0, self.width // 2, 2])
            a, b = (site.squeeze(part, 4) for part in site.split(pairs, 4, 2))
        else:
            a, b = site.split(x, 3, 2)
        turned = [a * cos - b * sin, b * cos + a * sin]
        if self.interleaved:
            turned = [concat([site.unsqueeze(part, 4) for part in turned], 4).reshape([0, 0, 0, self.width])]
        return concat([*turned, *rest], 3)

    @property
    def width(self) -> int:
        """Number of elements that are rotated."""
        shape = self.tables[0].shape
        if shape is None or not isinstance(shape[1], int):
            raise StaysError
        return 2 * shape[1]

    def _rows(self, table: Var) -> Var:
        """Look up the rows of a table for the positions, for all heads."""
        rows = self.site.op("Gather", table, self.positions, axis=0)
        return rows if known_rank(self.positions) == 1 else self.site.unsqueeze(rows, 1)


def rotary_embedding(site: Site) -> Var:
    """Expand RotaryEmbedding of a tensor of shape (B, S, N * size) or (B, N, S, size)."""
    site.refuse(site.get("is_packed_batching"), site.get("scale", 1.0) != 1)
    x, positions, partial = site.need(0), site.need(1, "int64"), bool(site.get("rotary_embedding_dim"))
    joined = known_rank(x) == 3
    if joined:
        heads = site.get("num_heads", 0) if partial else -1
        x = x.reshape([0, 0, heads, -1 if partial else Rotation(site, (site.need(2),) * 2, x, 0, False).width])
        x = x.transpose([0, 2, 1, 3])
    if known_rank(positions) == 1:  # the position of the first token
        positions = positions + count(site, length(x))
    y = Rotation(site, (site.need(2), site.need(3)), positions, site.get("interleaved", 0), partial)(x)
    return y.transpose([0, 2, 1, 3]).reshape([0, 0, -1]) if joined else y


def relative_position_bias(site: Site) -> Var:
    """Expand RelativePositionBias of T5: half of the buckets hold one distance each, longer ones share the rest."""
    table, lengths = site.need(0), [site.need(i, "int64").reshape([1]) for i in (1, 2)]
    buckets = table.shape[0] if table.shape else None
    site.refuse(not isinstance(buckets, int))
    assert isinstance(buckets, int)
    distance = count(site, lengths[1]) - site.unsqueeze(count(site, lengths[0]), 1)
    first = table.emitter.const(np.int64(0))
    if site.get("is_bidirectional", 0):
        buckets //= 2
        first = where(distance > 0, distance.like(buckets), 0)
        distance = abs(distance)
    else:
        distance = site.op("Max", -distance, distance.like(0))
    exact = buckets // 2
    ratio = site.op("Log", site.op("Max", site.cast(distance, "float32"), table.like(1)) / exact)
    step = (buckets - exact) / np.log(site.get("max_distance") / exact)
    far = site.op("Min", site.cast(ratio * step, "int64") + exact, distance.like(buckets - 1))
    bucket = first + where(distance < exact, distance, far)
    return site.unsqueeze(site.op("Gather", table, bucket, axis=0).transpose([2, 0, 1]), 0)


def gated_relative_position_bias(site: Site) -> Var:
    """Expand GatedRelativePositionBias of WavLM: the queries scale the position bias."""
    site.refuse(site.input(6))
    query = apart(site.need(0) + site.need(1), site.get("num_heads"))
    gates = site.op("MatMul", query, site.need(3)) + site.need(4)
    shape = concat([site.op("Shape", gates, known=(3,), start=0, end=3), site.emitter.ints([2, -1])])
    sums = gates.reshape(shape).sum([4])
    update, reset = site.split(site.op("Sigmoid", sums), 3, 2)
    return (update * (reset * site.need(5) - 1.0) + 2.0) * site.need(2)


def embed_layer_normalization(site: Site) -> Result:
    """Expand EmbedLayerNormalization of tokens, their positions and their segments."""

    def table(index: int) -> Lookup:
        return lambda ids: site.op("Gather", site.need(index), ids, axis=0)

    tables, parameters = (table(2), table(3), table(4)), (site.need(5), site.need(6))
    return embedded(site, tables, parameters, site.input(7, "int32"), site.input(8))


def embedded(
    site: Site,
    tables: tuple[Lookup, Lookup, Lookup],
    parameters: tuple[Var, Var],
    mask: Var | None,
    positions: Var | None = None,
) -> Result:
    """Sum and normalise the embeddings of the tokens in input 0, of their positions, and of the segments in input 1."""
    word, position, segment = tables
    ids, segments = site.need(0, "int32"), site.input(1)
    total = word(ids)
    if positions is None:
        size = site.op("Shape", ids, dtype="int64", known=(1,), start=1, end=2)
        positions = count(site, size)
    total = total + position(positions)
    total = total if segments is None else total + segment(segments)
    return [standardized(site, total, *parameters), _kept(site, ids, mask), total]


def _kept(site: Site, ids: Var, mask: Var | None) -> Var | None:
    """Number of tokens of each sample that the mask keeps; 0 if there is no mask."""
    if not site.asks(1):
        return None
    known = None if ids.shape is None else ids.shape[:1]
    tokens = site.cast(ids if mask is None else mask, "int32")
    tokens = tokens * 0 if mask is None else tokens
    return site.op("ReduceSum", tokens, site.emitter.ints([1]), known=known, keepdims=0)


TABLE: dict[str, Expansion] = {
    "EmbedLayerNormalization": embed_layer_normalization,
    "GatedRelativePositionBias": gated_relative_position_bias,
    "RelativePositionBias": relative_position_bias,
    "RotaryEmbedding": rotary_embedding,
}
