"""Attention layers of ONNX Runtime, with their masks and caches, as standard operators.

Shapes: B samples, N heads, S queries, T keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxplain.canonize.expansions.fused import known_rank
from onnxplain.canonize.expansions.positions import Rotation, apart, count, length
from onnxplain.canonize.expansions.site import Expansion, Result, Site, StaysError
from onnxplain.graph.var import Var, concat, where

_MASKED = -1e30  # added to hidden scores: their weights become 0, and several masks may add up without overflow


@dataclass(frozen=True)
class Heads:
    """Queries, keys and values, each of shape (B, N, tokens, size)."""

    site: Site
    q: Var
    k: Var
    v: Var

    def queries(self) -> Var:
        """Number of queries S, as a tensor of shape (1,)."""
        return length(self.q)

    def keys(self) -> Var:
        """Number of keys T, as a tensor of shape (1,)."""
        return length(self.k)

    def behind(self, past_k: Var | None, past_v: Var | None) -> Heads:
        """Put cached keys and values before the new ones."""
        if past_k is None or past_v is None:
            return self
        return Heads(self.site, self.q, concat([past_k, self.k], 2), concat([past_v, self.v], 2))

    def scores(self, scale: float | None) -> Var:
        """Scores q k^T * scale, of shape (B, N, S, T); the default scale is 1 / sqrt(size)."""
        products = self.site.op("MatMul", self.q, self.k.transpose([0, 1, 3, 2]))
        if scale:
            return products * scale
        size = self.site.cast(self.site.op("Shape", self.q, start=3, end=4), products.dtype)
        return products / self.site.op("Sqrt", size)

    def merged(self, weights: Var) -> Var:
        """Average the values by ``weights``, and join the heads: shape (B, S, N * size)."""
        mixed = self.site.op("MatMul", weights, self.v)
        return mixed.transpose([0, 2, 1, 3]).reshape([0, 0, -1])

    def attended(self, scores: Var) -> Var:
        """Average the values by the Softmax of scores, and join the heads."""
        return self.merged(self.site.op("Softmax", scores, known=scores.shape, axis=-1))

    def causal(self, window: int = -1) -> Var:
        """Summand of the scores that hides later keys from each query, and all but the last ``window`` ones."""
        query = self.site.unsqueeze(count(self.site, self.queries()) + (self.keys() - self.queries()), 1)
        key = count(self.site, self.keys())
        hidden = key > query
        if window > 0:
            hidden = hidden | (key <= query - window)
        return self.hide(hidden)

    def hide(self, hidden: Var, value: float = _MASKED) -> Var:
        """Summand of the scores: ``value`` where the condition holds, else 0."""
        return where(hidden, self.q.like(value), self.q.like(0))

    def padding(self, mask: Var, value: float) -> Var:
        """Summand of the scores that hides what a mask hides.

        The mask holds numbers of visible keys, of shape (B,), or 1 for visible and 0 for hidden keys, (B, T) or
        (B, S, T).
        """
        rank = known_rank(mask)
        if rank == 1:
            batch = known_rank(self.site.need(0)) and (self.site.need(0).shape or ())[0]
            if (mask.shape or ())[0] != batch:
                raise StaysError  # the mask holds start positions or cumulative lengths, too
            ends = self.site.unsqueeze(self.site.cast(mask, "int64"), 1, 2, 3)
            return self.hide(count(self.site, self.keys()) >= ends, value)
        if rank > 3:
            raise StaysError
        hidden = ~(mask > 0)
        return self.hide(self.site.unsqueeze(hidden, *((1, 2) if rank == 2 else (1,))), value)


def attention(site: Site) -> Result:
    """Expand Attention, which includes the projections to queries, keys and values."""
    site.refuse(site.input(6), site.get("past_present_share_buffer"))
    past, bias = site.input(4), site.input(5)
    return self_attention(site, site.need(0), site.need(1), site.input(2), site.input(3, "int32"), past, bias)


def self_attention(
    site: Site, x: Var, weights: Var, bias: Var | None, mask: Var | None, past: Var | None, added: Var | None = None
) -> Result:
    """Write attention of ``x`` to itself; ``added`` is added to the scores."""
    site.refuse(site.get("do_rotary"))
    heads, sizes = site.get("num_heads"), site.get("qkv_hidden_sizes") or 3
    projected = site.op("MatMul", x, weights)
    projected = projected if bias is None else projected + bias
    h = Heads(site, *(apart(part, heads) for part in site.split(projected, -1, sizes)))
    if past is not None:
        h = h.behind(*(site.squeeze(part, 0) for part in site.split(past, 0, 2)))
    scores = _masked(h, h.scores(site.get("scale")), mask, added)
    present = concat([site.unsqueeze(h.k, 0), site.unsqueeze(h.v, 0)]) if site.asks(1) else None
    return [h.attended(scores), present]


def _masked(h: Heads, scores: Var, mask: Var | None, added: Var | None) -> Var:
    """Add masks and a bias to scores."""
    if mask is not None:
        scores = scores + h.padding(mask, h.site.get("mask_filter_value", -10000.0))
    if added is not None:
        scores = scores + added
    return scores + h.causal() if h.site.get("unidirectional", 0) else scores


def multi_head_attention(site: Site) -> Result:
    """Expand MultiHeadAttention, whose inputs are projected already, except for their biases."""
    site.refuse(site.input(8), site.input(9), site.asks(3))
    heads = site.get("num_heads")
    query, key, value, bias = (site.input(i) for i in range(4))
    packed = query if key is None else key if value is None else None
    if packed is None and key is not None and value is not None:
        if known_rank(key) == 4:  # the keys of another sequence, already split into heads
            site.refuse(bias)
            h = Heads(site, apart(site.need(0), heads), key, value)
        else:
            parts = _biased(site, [site.need(0), key, value], bias)
            h = Heads(site, *(apart(part, heads) for part in parts))
    else:  # packed: (B, S, N, 2 or 3, size)
        site.refuse(bias)
        assert packed is not None
        count = 3 if key is None else 2
        parts = [site.squeeze(p, 3).transpose([0, 2, 1, 3]) for p in site.split(packed, 3, count)]
        h = Heads(site, *parts) if key is None else Heads(site, apart(site.need(0), heads), *parts)
    h = h.behind(site.input(6), site.input(7))
    scores = _masked(h, h.scores(site.get("scale")), site.input(4, "int32"), site.input(5))
    return [h.attended(scores), h.k if site.asks(1) else None, h.v if site.asks(2) else None]


def _biased(site: Site, parts: Sequence[Var], bias: Var | None) -> Sequence[Var]:
    """Add to each part its own slice of the bias."""
    if bias is None:
        return parts
    start, results = site.emitter.ints([0]), []
    for part in parts:
        end = start + length(part)
        results.append(part + site.op("Slice", bias, start, end))
        start = end
    return results


def group_query_attention(site: Site) -> Result:
    """Expand GroupQueryAttention: several query heads share one head of keys; a token sees itself and earlier ones."""
    unknown = ("kv_cache_bit_width", "sliding_window_cache", "qk_output")
    site.refuse(*(site.input(i) for i in range(12, 16)), *(site.get(name) for name in unknown), site.asks(3))
    heads, shared = site.get("num_heads"), site.get("kv_num_heads")
    if site.input(1) is None:
        merged = site.need(0).reshape([0, 0, heads + 2 * shared, -1]).transpose([0, 2, 1, 3])
        h = Heads(site, *site.split(merged, 1, [heads, shared, shared]))
    else:
        h = Heads(site, apart(site.need(0), heads), apart(site.need(1), shared), apart(site.need(2), shared))
    past_k, past_v = site.input(3), site.input(4)
    if site.get("do_rotary", 0):
        positions = site.input(9)
        if positions is None:
            positions = count(site, h.queries())
            positions = positions if past_k is None else positions + length(past_k)
        tables = site.need(7), site.need(8)
        rotation = Rotation(site, tables, positions, site.get("rotary_interleaved", 0), partial=True)
        h = Heads(site, rotation(h.q), rotation(h.k), h.v)
    h = h.behind(past_k, past_v)
    present = (h.k, h.v)
    if heads > shared:
        h = Heads(site, h.q, _repeated(site, h.k, heads // shared), _repeated(site, h.v, heads // shared))
    scores = h.scores(site.get("scale"))
    cap, added = site.get("softcap", 0.0), site.input(10)
    scores = scores if not cap else site.op("Tanh", scores * (1 / cap)) * cap
    scores = scores if added is None else scores + added
    if site.get("causal", 1):
        scores = scores + h.causal(site.get("local_window_size", -1))
    else:
        scores = scores + h.padding(site.need(5, "int32") + 1, _MASKED)
    return [_with_sink(h, scores), *present]


def _with_sink(h: Heads, scores: Var) -> Var:
    """Average the values by the Softmax of scores and, if there is one, of a sink: a score that has no value."""
    sink = h.site.input(11)
    if sink is None and h.site.get("smooth_softmax", -1) != 1:
        return h.attended(scores)
    zero = h.site.emitter.ints([0])
    column = h.site.op("Slice", scores, zero, h.site.emitter.ints([1]), h.site.emitter.ints([3])) * 0.0
    column = column if sink is None else column + sink.reshape([1, -1, 1, 1])
    weights = h.site.op("Softmax", concat([scores, column], 3), axis=-1)
    return h.merged(h.site.op("Slice", weights, zero, h.keys(), h.site.emitter.ints([3])))


def _repeated(site: Site, x: Var, times: int) -> Var:
    """Repeat each head."""
    wide = site.op("Expand", site.unsqueeze(x, 2), site.emitter.ints([1, 1, times, 1, 1]))
    ends = (site.op("Shape", x, known=(n,), start=k, end=k + n) for k, n in ((0, 1), (2, 2)))
    return wide.reshape(concat([next(ends), site.emitter.ints([-1]), next(ends)]))


TABLE: dict[str, Expansion] = {
    "Attention": attention,
    "GroupQueryAttention": group_query_attention,
    "MultiHeadAttention": multi_head_attention,
}
