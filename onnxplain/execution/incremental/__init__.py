"""Incremental occlusion: what a window cannot reach is not computed again.

A score of a masked copy differs from that of the whole sample by what the window changes: in each feature map no more
than a patch. So the maps of the sample are kept, and for each window the graph is run on patches: what a layer reads
beyond a patch comes from the map kept (Nakandala et al. 2019, Incremental and approximate inference for faster
occlusion-based deep CNN explanations). From where that would save no more, it goes on with whole maps, the patches
written into them.
"""

from onnxplain.execution.incremental.rewrite import Incremental, incremental

__all__ = ["Incremental", "incremental"]
