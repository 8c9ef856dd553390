"""LSTM, GRU and RNN in layout 1 (samples first) become layout 0 (steps first), the only one that ONNX Runtime has.

Shapes: T steps, B samples, D directions, H hidden values.
"""

from __future__ import annotations

from onnxplain.canonize.expansions.site import Expansion, Result, Site

# Inputs: X, which is (B, T, I) in layout 1 and (T, B, I) in layout 0; initial_h and initial_c, (B, D, H) and (D, B, H).
_STATES = (0, 5, 6)


def _time_first(site: Site) -> Result:
    """Swap the first two axes of inputs and outputs."""
    site.refuse(not site.get("layout"))
    inputs = [x.transpose([1, 0, 2]) if x is not None and k in _STATES else x for k, x in enumerate(site.inputs)]
    attrs = {**site.node.attrs, "layout": 0}
    y, *last = site.emitter.ops(site.node.op, *inputs, outputs=len(site.node.outputs), **attrs)
    return [y.transpose([2, 0, 1, 3]), *(state.transpose([1, 0, 2]) for state in last)]  # Y: (T, D, B, H) in layout 0


TABLE: dict[str, Expansion] = {"LSTM": _time_first, "GRU": _time_first, "RNN": _time_first}
