"""Perturbations: methods that mask parts of the input and compare scores, with forward passes only, on any model."""

from onnxplain.distributions.perturbation.ablation import Ablation, Permutation
from onnxplain.distributions.perturbation.lime import Lime
from onnxplain.distributions.perturbation.perturbation import CopyPlan, Estimate, Perturbation
from onnxplain.distributions.perturbation.rise import Rise
from onnxplain.distributions.perturbation.shapley import KernelShap, ShapleySampling
from onnxplain.distributions.perturbation.windows import Windows

__all__ = [
    "Ablation",
    "CopyPlan",
    "Estimate",
    "KernelShap",
    "Lime",
    "Permutation",
    "Perturbation",
    "Rise",
    "ShapleySampling",
    "Windows",
]
