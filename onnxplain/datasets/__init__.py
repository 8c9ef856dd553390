"""Data sets: samples in chunks that fit the memory bound, and running statistics over them."""

from onnxplain.datasets.batches import Data, Progress, for_each_chunk
from onnxplain.datasets.moments import Moments, with_error

__all__ = ["Data", "Moments", "Progress", "for_each_chunk", "with_error"]
