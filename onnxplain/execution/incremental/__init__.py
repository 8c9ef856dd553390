"""Incremental occlusion: for each window, only the parts of feature maps that it changes are computed again.

A window changes a patch of each feature map. So the maps of the whole sample are kept, and the graph is run on patches
for each window; where a layer reads beyond a patch, it reads the kept map (Nakandala et al. 2019, Incremental and
approximate inference for faster occlusion-based deep CNN explanations). From the layer on at which patches would save
no more work, patches are written into the kept maps, and the rest of the graph runs on whole maps.

`regions` says where patches are, `steps` how each node runs on patches, `plan` which nodes do; `rewrite` writes the
graphs, and `sessions` runs them.
"""

from onnxplain.execution.incremental.rewrite import Incremental, incremental

__all__ = ["Incremental", "incremental"]
