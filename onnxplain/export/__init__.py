"""Export: a model and a method as one graph, a stand-alone explainer that needs an ONNX runtime only.

`WRITERS` has one row per distribution. Methods that look at several points become a loop inside of the graph, so that
memory does not depend on the number of points.
"""

from onnxplain.export.explainer import WRITERS, Writer, explainer_graph, in_types
from onnxplain.export.specification import Specification

__all__ = ["WRITERS", "Specification", "Writer", "explainer_graph", "in_types"]
