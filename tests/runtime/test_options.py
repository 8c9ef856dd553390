from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from onnxplain.runtime import ort
from onnxplain.runtime.options import Level, save_rewritten, session_options
from onnxplain.runtime.providers import CPU
from onnxplain.storage.tensors import LARGE_TENSOR, is_external
from tests.models import model

LARGE = np.ones((4, LARGE_TENSOR), np.float32)


def test_sessions_are_silent_and_plan_no_memory():
    options = session_options(Level.ORT_ENABLE_BASIC)
    assert options.graph_optimization_level == Level.ORT_ENABLE_BASIC
    assert options.log_severity_level == 4
    assert not options.enable_mem_pattern
    assert not options.enable_mem_reuse


def test_a_session_saves_what_it_has_rewritten_with_large_tensors_next_to_it(tmp_path: Path):
    text = "g (float[N,4] x) => (float[N,1024] y) { h = Identity(x) m = MatMul(h, w) y = Add(m, b) }"
    proto = model(text, w=LARGE, b=np.ones(1, np.float32))
    options = session_options(Level.ORT_ENABLE_BASIC)
    save_rewritten(options, tmp_path / "new.onnx")
    ort.InferenceSession(proto.SerializeToString(), options, [CPU])
    saved = onnx.load(tmp_path / "new.onnx", load_external_data=False)
    assert [node.op_type for node in saved.graph.node] == ["MatMul", "Add"]
    assert {t.name: is_external(t) for t in saved.graph.initializer} == {"w": True, "b": False}
    assert (tmp_path / "new.onnx.data").stat().st_size >= LARGE.nbytes
