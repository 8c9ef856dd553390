"""Pooling over regions of interest.

Shapes: N images of C channels and H x W elements; R regions with P x Q outputs each. Along an axis, each output reads G
samples of the image. The axis of H and P is called ``down``, that of W and Q ``across``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxplain.graph.var import Var, concat, where
from onnxplain.ops.index import add_at, count, counter, row_index, zeros
from onnxplain.ops.linear import unsqueeze
from onnxplain.ops.table import Call, Cotangent, Kind, OpTable
from onnxplain.ops.traits import Trait

DOWN, ACROSS = [3, 4], [1, 2]  # axes to insert in R P G, and in R Q G, for the axes R P G Q G


def region_kind(call: Call) -> Kind:
    """MAX_POOL or, for means, AVG_POOL; PRODUCT if the regions, which set the weights, are active, too."""
    if call.attrs["mode"] == "max":
        return Kind.MAX_POOL
    return Kind.PRODUCT if call.active[1] else Kind.AVG_POOL


TABLE = OpTable(region_kind)


@TABLE.vjp("RoiAlign", traits=Trait.READS | Trait.CONTRACTS)
def roi_align(call: Call, ct: Var) -> Sequence[Cotangent]:
    """As `_largest` in mode max, otherwise as `_mean`."""
    down, across = (
        SampledAxis.of(call, 1, call.attrs["output_height"]),
        SampledAxis.of(call, 0, call.attrs["output_width"]),
    )
    return _largest(call, ct, down, across) if call.attrs["mode"] == "max" else _mean(call, ct, down, across)


def _mean(call: Call, ct: Var, down: SampledAxis, across: SampledAxis) -> Sequence[Cotangent]:
    """For means of bilinear interpolations: y[r] = a[r] x[image of r] b[r]^T, with a of shape P x H and b of Q x W."""
    x, images = call.x, call.need(2)
    a, b = unsqueeze(down.matrix(), [1]), unsqueeze(across.matrix(), [1])
    to_x = to_regions = None
    if call.active[0]:
        rows = matmul(a.transpose([0, 1, 3, 2]), ct).transpose([1, 2, 0, 3]).reshape([0, 0, -1])  # C H (R Q)
        mine = unsqueeze(images, [1]).equal(counter(x.size(0))).cast(ct.dtype)  # R N
        columns = b.transpose([0, 2, 1, 3]) * unsqueeze(mine, [1, 3])  # R Q N W
        width = x.size(0) * x.size(3)
        summed = call.op("MatMul", rows, columns.reshape(concat([call.ints([-1]), width])))
        to_x = summed.reshape(concat([x.sizes(1, 3), x.size(0), x.size(3)]), known=(None,) * 4).transpose([2, 0, 1, 3])
    if call.active[1]:
        regions = call.op("Gather", x, images, axis=0, known=(None,) * 4)  # R C H W
        to_a = matmul(ct, matmul(b, regions.transpose([0, 1, 3, 2]))).sum([1])  # R P H
        to_b = matmul(ct.transpose([0, 1, 3, 2]), matmul(a, regions)).sum([1])  # R Q W
        to_regions = line_ends(down.from_matrix(to_a), across.from_matrix(to_b))
    return [to_x, to_regions]


def _largest(call: Call, ct: Var, down: SampledAxis, across: SampledAxis) -> Sequence[Cotangent]:
    """For the largest product of one element and its weight: ONNX does not add up the four products of a sample."""
    reads = down.corners(), across.corners()
    weights = [unsqueeze(r.weight, [*missing, 5]) for r, missing in zip(reads, (DOWN, ACROSS), strict=True)]
    index, read, chosen = choose(call.x, call.need(2), ct, *reads)
    to_x = to_regions = None
    if call.active[0]:
        to_x = scatter(call.x, index, chosen * weights[0] * weights[1])
    if call.active[1]:
        seen = (chosen * read).sum([5], keepdims=True)
        to_down, to_across = (seen * weights[1]).sum([3, 4, 5]), (seen * weights[0]).sum([1, 2, 5])
        to_regions = line_ends(down.from_corners(to_down), across.from_corners(to_across))
    return [to_x, to_regions]


@TABLE.vjp("MaxRoiPool", kind=Kind.MAX_POOL)
def max_roi_pool(call: Call, ct: Var) -> list[Var]:
    """Gives ct to the maximum of each window of elements; ties share it equally."""
    x, regions = call.x, call.need(1)
    corners = call.op("Floor", regions * call.attrs["spatial_scale"] + 0.5)

    def reads(column: int, axis: int, outputs: int) -> Reads:
        first, last = (pick(corners, c) for c in (column, column + 2))
        step = call.op("Max", last - first + 1, first.like(1)) / outputs
        size = x.size(axis)
        begin, end = (
            unsqueeze(call.op("Min", call.op("Max", (first + edge).cast(np.int64), size.like(0)), size), [2])
            for edge in (
                call.op("Floor", step * first.like(np.arange(outputs))),
                call.op("Ceil", step * first.like(np.arange(1, outputs + 1))),
            )
        )
        index = begin + counter(most(end - begin))
        return Reads(call.op("Min", index, size - 1), first.like([[[1]]]), index < end)

    height, width = call.attrs["pooled_shape"]
    images = pick(regions, 0).reshape([-1]).cast(np.int64)
    index, _, chosen = choose(x, images, ct, reads(2, 2, height), reads(1, 3, width))
    return [scatter(x, index, chosen)]


def matmul(a: Var, b: Var) -> Var:
    """Matrix products of tensors with 4 axes."""
    return a.emitter.op("MatMul", a, b, known=(None,) * 4)


def pick(table: Var, column: int) -> Var:
    """A column of a table, of shape R x 1."""
    return table.emitter.op("Gather", table, table.emitter.ints([column]), axis=1, known=(None, 1))


def most(counts: Var) -> Var:
    """The largest of some counts, at least 1, of shape (1,)."""
    counts = counts.cast(np.float32).reshape([-1])  # CUDA has no ReduceMax of integers
    counts = concat([counts, counts.like([1])])  # ReduceMax of no regions would be minus infinity
    return counts.emitter.op("ReduceMax", counts, known=(1,), keepdims=1).cast(np.int64)


@dataclass(frozen=True)
class Reads:
    """Elements from which each output chooses one, along one axis: index, weight and validity, with axes R P G."""

    index: Var
    weight: Var
    valid: Var


def choose(x: Var, images: Var, ct: Var, down: Reads, across: Reads) -> tuple[Var, Var, Var]:
    """Read all pairs of positions along the two axes, and share ct among those with the largest product.

    Returns
    -------
    tuple
        Positions in the images (axes R P G Q G), and, with axes R P G Q G C, the elements there and their shares of ct,
        both without weights.
    """
    emitter = x.emitter
    row = images.reshape([-1, 1, 1, 1, 1]) * x.size(2) + unsqueeze(down.index, DOWN)
    index = row * x.size(3) + unsqueeze(across.index, ACROSS)
    pixels = x.transpose([0, 2, 3, 1]).reshape(concat([emitter.ints([-1]), x.size(1)]))
    read = emitter.op("Gather", pixels, index, axis=0, known=(None,) * 6)
    valid = unsqueeze(down.valid, [*DOWN, 5]) & unsqueeze(across.valid, [*ACROSS, 5])
    value = read * (unsqueeze(down.weight, [*DOWN, 5]) * unsqueeze(across.weight, [*ACROSS, 5]))
    value = where(valid, value, float(np.finfo(x.dtype).min))
    largest = emitter.op("ReduceMax", value, emitter.ints([2, 4]), keepdims=1, known=(None,) * 6)
    hits = (value.equal(largest) & valid).cast(ct.dtype)
    count = emitter.op("Max", hits.sum([2, 4], keepdims=True), ct.like(1))
    return index, read, hits * (unsqueeze(ct.transpose([0, 2, 3, 1]), [2, 4]) / count)


def scatter(x: Var, index: Var, updates: Var) -> Var:
    """Add ``updates`` (axes R P G Q G C) at ``index`` to zeros in the shape of x."""
    channels = x.size(1)
    sizes = concat([x.size(0), x.sizes(2), channels])
    base = zeros(concat([x.size(0) * count(x, 2), channels]), updates.dtype)
    rows = updates.reshape(concat([x.emitter.ints([-1]), channels]))
    total = add_at(base, row_index(index.reshape([-1]), channels), rows, 0)
    return total.reshape(sizes, known=(None,) * 4).transpose([0, 3, 1, 2])


def line_ends(down: tuple[Var, Var], across: tuple[Var, Var]) -> Var:
    """Cotangent of the regions (x1, y1, x2, y2) from those of the ends along the two axes."""
    return concat([across[0], down[0], across[1], down[1]], axis=1)


@dataclass(frozen=True)
class SampledAxis:
    """The samples of RoiAlign along one axis, at place = begin + part * (end - begin), in elements of the image.

    Attributes
    ----------
    size, place, part
        Size of the image, of shape (1,); place and part of each sample, with axes R P G.
    valid, count
        Whether a sample exists (R P G), and how many each output has (R 1 1): with adaptive sampling, regions have
        different numbers of samples.
    free
        Where the region is longer than 1 element, to which shorter ones are extended (R 1 1); None: none is extended.
    scale
        Elements per unit of the regions.
    """

    size: Var
    place: Var
    part: Var
    valid: Var
    count: Var
    free: Var | None
    scale: float

    @classmethod
    def of(cls, call: Call, column: int, outputs: int) -> SampledAxis:
        """The samples along one axis: ``column`` 0 across, 1 down."""
        regions, ratio, scale = call.need(1), call.attrs["sampling_ratio"], call.attrs["spatial_scale"]
        halved = call.attrs["coordinate_transformation_mode"] == "half_pixel"
        begin, end = (unsqueeze(pick(regions, c) * scale - 0.5 * halved, [2]) for c in (column, column + 2))
        length, free = end - begin, None
        if not halved:
            length, free = call.op("Max", length, length.like(1)), length > 1
        count = length.like([[[ratio]]]) if ratio else call.op("Ceil", length / outputs)
        sample = counter(call.ints([ratio]) if ratio else most(count)).cast(length.dtype)
        output = length.like(np.arange(outputs)[:, None])
        part = (output + (sample + 0.5) / call.op("Max", count, count.like(1))) * (1 / outputs)
        return cls(call.x.size(3 - column), begin + part * length, part, sample < count, count, free, scale)

    @property
    def limit(self) -> Var:
        """Place of the last element."""
        return (self.size - 1).cast(self.place.dtype)

    @property
    def clipped(self) -> Var:
        """Places, with those outside moved to the edge of the image."""
        emitter = self.place.emitter
        return emitter.op("Min", emitter.op("Max", self.place, self.place.like(0)), self.limit)

    @property
    def inside(self) -> Var:
        """1 for samples up to one element beyond the image, which count; 0 for the others."""
        near = (self.place >= -1) & (self.place <= self.limit + 1)
        return near.cast(self.place.dtype)

    @property
    def moves(self) -> Var:
        """1 for samples whose weights depend on their place, 0 for samples at the edge or outside."""
        return ((self.place > 0) & (self.place < self.limit)).cast(self.place.dtype)

    def _hats(self) -> tuple[Var, Var, Var]:
        """Distance of each sample to each element, weight of the element for it, and share of the sample (R P G H)."""
        away = unsqueeze(self.clipped, [3]) - counter(self.size).cast(self.place.dtype)
        hat = away.emitter.op("Max", 1 - abs(away), away.like(0))
        share = self.valid.cast(hat.dtype) / hat.emitter.op("Max", self.count, self.count.like(1))
        return away, hat, unsqueeze(share, [3])

    def matrix(self) -> Var:
        """Weight of each element in each output (R P H)."""
        _, hat, share = self._hats()
        return (hat * (share * unsqueeze(self.inside, [3]))).sum([2])

    def from_matrix(self, ct: Var) -> tuple[Var, Var]:
        """Cotangents of begin and end from that of the matrix."""
        away, hat, share = self._hats()
        slope = (away.emitter.op("Sign", away) * (share * unsqueeze(self.moves, [3]))).mask(hat > 0)
        return self._to_ends(-(unsqueeze(ct, [2]) * slope).sum([3]))

    def corners(self) -> Reads:
        """The two elements around each sample, with their weights."""
        clipped = unsqueeze(self.clipped, [3])
        place = clipped.emitter.op("Floor", clipped) + clipped.like([0, 1])
        weight = (1 - abs(clipped - place)) * unsqueeze(self.inside, [3])
        index = clipped.emitter.op("Min", place.cast(np.int64), self.size - 1)
        valid = clipped.emitter.op("Expand", unsqueeze(self.valid, [3]), weight.sizes(), known=(None,) * 4)
        sizes = concat([weight.sizes(0, 2), count(weight, 2)])
        return Reads(*(v.reshape(sizes, known=(None,) * 3) for v in (index, weight, valid)))

    def from_corners(self, ct: Var) -> tuple[Var, Var]:
        """Cotangents of begin and end from those of the weights of the two elements."""
        pairs = ct.reshape(concat([self.place.sizes(), self.size.like([2])]), known=(None,) * 4)
        return self._to_ends((pairs * pairs.like([-1, 1])).sum([3]) * self.moves)

    def _to_ends(self, ct: Var) -> tuple[Var, Var]:
        """Cotangents of begin and end from those of the places."""
        stretch = (ct * self.part).sum([1, 2], keepdims=True)
        stretch = stretch if self.free is None else stretch.mask(self.free)
        shift = ct.sum([1, 2], keepdims=True)
        ends = (shift - stretch) * self.scale, stretch * self.scale
        return ends[0].reshape([-1, 1]), ends[1].reshape([-1, 1])
