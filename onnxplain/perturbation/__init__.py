"""Methods that mask parts of the input and look at the scores: forward passes only, on anything that runs."""

from onnxplain.perturbation.ablation import Ablation, Permutation
from onnxplain.perturbation.lime import Lime
from onnxplain.perturbation.rise import Rise
from onnxplain.perturbation.shapley import KernelShap, ShapleySampling
from onnxplain.perturbation.windows import Windows

__all__ = ["Ablation", "KernelShap", "Lime", "Permutation", "Rise", "ShapleySampling", "Windows"]
