"""The papers behind the methods and the defaults of their options."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A publication.

    Attributes
    ----------
    authors
        Surnames, as a citation has them: "Bach et al.".
    title
        The title.
    year
        The year that a citation gives: that of the conference or journal, not that of the preprint.
    arxiv
        Number of the preprint on arxiv.org, or empty.
    doi
        Digital object identifier, or empty.
    """

    authors: str
    title: str
    year: int
    arxiv: str = ""
    doi: str = ""

    @property
    def citation(self) -> str:
        """Authors and year, such as "Bach et al. 2015"."""
        return f"{self.authors} {self.year}"

    @property
    def url(self) -> str:
        """Where to read it: the preprint, which is free, if there is one."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else f"https://doi.org/{self.doi}"

    def __str__(self) -> str:
        return f"{self.citation}, {self.title}, {self.url}"


ACHANTA_2012 = Paper(
    "Achanta et al.",
    "SLIC superpixels compared to state-of-the-art superpixel methods",
    2012,
    doi="10.1109/TPAMI.2012.120",
)
ACHTIBAT_2024 = Paper(
    "Achtibat et al.",
    "AttnLRP: attention-aware layer-wise relevance propagation for transformers",
    2024,
    arxiv="2402.05602",
)
ADEBAYO_2018 = Paper(
    "Adebayo et al.",
    "Local explanation methods for deep neural networks lack sensitivity to parameter values",
    2018,
    arxiv="1810.03307",
)
ALI_2022 = Paper(
    "Ali et al.", "XAI for transformers: better explanations through conservative propagation", 2022, arxiv="2202.07304"
)
BACH_2015 = Paper(
    "Bach et al.",
    "On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance propagation",
    2015,
    doi="10.1371/journal.pone.0130140",
)
BREIMAN_2001 = Paper("Breiman", "Random forests", 2001, doi="10.1023/A:1010933404324")
BYUN_2022 = Paper(
    "Byun and Lee",
    "Recipro-CAM: fast gradient-free visual explanations for convolutional neural networks",
    2022,
    arxiv="2209.14074",
)
CASTRO_2009 = Paper(
    "Castro et al.",
    "Polynomial calculation of the Shapley value based on sampling",
    2009,
    doi="10.1016/j.cor.2008.04.004",
)
CHATTOPADHAY_2018 = Paper(
    "Chattopadhay et al.",
    "Grad-CAM++: improved visual explanations for deep convolutional networks",
    2018,
    arxiv="1710.11063",
)
DEVILLE_1992 = Paper(
    "Deville and Särndal", "Calibration estimators in survey sampling", 1992, doi="10.1080/01621459.1992.10475217"
)
DHAMDHERE_2019 = Paper("Dhamdhere et al.", "How important is a neuron?", 2019, arxiv="1805.12233")
DOMBROWSKI_2019 = Paper(
    "Dombrowski et al.", "Explanations can be manipulated and geometry is to blame", 2019, arxiv="1906.07983"
)
DRAELOS_2020 = Paper(
    "Draelos and Carin",
    "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks",
    2020,
    arxiv="2011.08891",
)
ERION_2021 = Paper(
    "Erion et al.",
    "Improving performance of deep learning models with axiomatic attribution priors and expected gradients",
    2021,
    arxiv="1906.10670",
)
FONG_2017 = Paper(
    "Fong and Vedaldi", "Interpretable explanations of black boxes by meaningful perturbation", 2017, arxiv="1704.03296"
)
HOOKER_2019 = Paper(
    "Hooker et al.", "A benchmark for interpretability methods in deep neural networks", 2019, arxiv="1806.10758"
)
JIANG_2021 = Paper(
    "Jiang et al.",
    "LayerCAM: exploring hierarchical class activation maps for localization",
    2021,
    doi="10.1109/TIP.2021.3089943",
)
KIM_2019 = Paper(
    "Kim et al.", "Why are saliency maps noisy? Cause of and solution to noisy saliency maps", 2019, arxiv="1902.04893"
)
LEINO_2018 = Paper(
    "Leino et al.", "Influence-directed explanations for deep convolutional networks", 2018, arxiv="1802.03788"
)
LUNDBERG_2017 = Paper(
    "Lundberg and Lee", "A unified approach to interpreting model predictions", 2017, arxiv="1705.07874"
)
MONTAVON_2017 = Paper(
    "Montavon et al.",
    "Explaining nonlinear classification decisions with deep Taylor decomposition",
    2017,
    arxiv="1512.02479",
)
MONTAVON_2018 = Paper(
    "Montavon et al.",
    "Methods for interpreting and understanding deep neural networks",
    2018,
    arxiv="1706.07979",
)
MONTAVON_2019 = Paper(
    "Montavon et al.", "Layer-wise relevance propagation: an overview", 2019, doi="10.1007/978-3-030-28954-6_10"
)
PETSIUK_2018 = Paper(
    "Petsiuk et al.", "RISE: randomized input sampling for explanation of black-box models", 2018, arxiv="1806.07421"
)
RIBEIRO_2016 = Paper(
    "Ribeiro et al.",
    '"Why should I trust you?": explaining the predictions of any classifier',
    2016,
    arxiv="1602.04938",
)
SELVARAJU_2017 = Paper(
    "Selvaraju et al.",
    "Grad-CAM: visual explanations from deep networks via gradient-based localization",
    2017,
    arxiv="1610.02391",
)
SHRIKUMAR_2016 = Paper(
    "Shrikumar et al.",
    "Not just a black box: learning important features through propagating activation differences",
    2016,
    arxiv="1605.01713",
)
SHRIKUMAR_2017 = Paper(
    "Shrikumar et al.",
    "Learning important features through propagating activation differences",
    2017,
    arxiv="1704.02685",
)
SIMONYAN_2014 = Paper(
    "Simonyan et al.",
    "Deep inside convolutional networks: visualising image classification models and saliency maps",
    2014,
    arxiv="1312.6034",
)
SMILKOV_2017 = Paper("Smilkov et al.", "SmoothGrad: removing noise by adding noise", 2017, arxiv="1706.03825")
SPRINGENBERG_2015 = Paper(
    "Springenberg et al.", "Striving for simplicity: the all convolutional net", 2015, arxiv="1412.6806"
)
SUNDARARAJAN_2017 = Paper("Sundararajan et al.", "Axiomatic attribution for deep networks", 2017, arxiv="1703.01365")
TELEA_2004 = Paper(
    "Telea",
    "An image inpainting technique based on the fast marching method",
    2004,
    doi="10.1080/10867651.2004.10487596",
)
WANG_2020 = Paper(
    "Wang et al.",
    "Score-CAM: score-weighted visual explanations for convolutional neural networks",
    2020,
    arxiv="1910.01279",
)
ZEILER_2014 = Paper(
    "Zeiler and Fergus", "Visualizing and understanding convolutional networks", 2014, arxiv="1311.2901"
)
ZHANG_2016 = Paper("Zhang et al.", "Top-down neural attention by excitation backprop", 2016, arxiv="1608.00507")
ZHOU_2016 = Paper("Zhou et al.", "Learning deep features for discriminative localization", 2016, arxiv="1512.04150")
