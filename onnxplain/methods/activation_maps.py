"""Class activation maps: where in a feature map the evidence for the score lies."""

from __future__ import annotations

from typing import Annotated

from onnxplain import composites
from onnxplain.errors import OptionError
from onnxplain.methods import cams, options
from onnxplain.methods.gradients import ONE_PASS
from onnxplain.methods.method import Method
from onnxplain.methods.papers import (
    BYUN_2022,
    CHATTOPADHAY_2018,
    DRAELOS_2020,
    JIANG_2021,
    SELVARAJU_2017,
    WANG_2020,
    ZHOU_2016,
)
from onnxplain.methods.spec import Cost, Doc, documented


@documented(
    "maps",
    formula="sum_c w_c A_c, A: the feature map, w_c: the weight from the mean of channel c to the score",
    latex=r"M = \sum_c w_c A_c",
    cost=ONE_PASS,
    use="For convolutional networks that end in global average pooling and linear layers, where it is the exact"
    " decomposition of the score over places.",
    avoid="For any other head: grad_cam works with all, and equals cam up to a factor and its ReLU where cam applies.",
    papers=(ZHOU_2016,),
)
def cam(relu: options.Relu = False, upsample: options.Upsample = "linear") -> Method:
    """Feature map weighted by the linear layer behind global average pooling, of shape (N, 1, H, W)."""
    return _map("cam", cams.sum_weights, relu, upsample, pooled=True)


@documented(
    "maps",
    formula="max(sum_c mean(G_c) A_c, 0), A: the feature map, G: derivative of the score by it",
    latex=r"M = \max\Big(\sum_c \overline{G_c} \, A_c, 0\Big), \qquad G = \frac{\partial f}{\partial A}",
    cost=ONE_PASS,
    use="For a quick, coarse map of which region of an image contributes to a class, on any convolutional network.",
    avoid="For early layers (at=) or several objects: one weight for a whole channel hides that its places differ;"
    " hires_cam and layer_cam keep them apart.",
    papers=(SELVARAJU_2017,),
)
def grad_cam(relu: options.Relu = True, upsample: options.Upsample = "linear") -> Method:
    """Last feature map, or that of at=, its channels weighted by their mean gradients, of shape (N, 1, H, W)."""
    return _map("grad_cam", cams.mean_weights, relu, upsample)


@documented(
    "maps",
    formula="max(sum_c A_c * sum(alpha_c max(G_c, 0)), 0), alpha = 1 / (2 + G sum(A)), sums over the places of a"
    " channel",
    latex=r"M = \max\Big(\sum_c A_c \sum_p \alpha_{cp} \max(G_{cp}, 0), 0\Big),"
    r" \qquad \alpha_{cp} = \frac{1}{2 + G_{cp} \sum_q A_{cq}}",
    cost=ONE_PASS,
    use="As grad_cam, where an image shows several objects of the class.",
    avoid="Where channels that lower the score matter: only positive gradients count.",
    papers=(CHATTOPADHAY_2018,),
)
def grad_cam_plus_plus(relu: options.Relu = True, upsample: options.Upsample = "linear") -> Method:
    """Grad-CAM with weights from positive gradients and their curvature, of shape (N, 1, H, W)."""
    return _map("grad_cam_plus_plus", cams.curvature_weights, relu, upsample)


@documented(
    "maps",
    formula="sum_c G_c * A_c, A: the feature map, G: derivative of the score by it",
    latex=r"M = \sum_c G_c \odot A_c, \qquad G = \frac{\partial f}{\partial A}",
    cost=ONE_PASS,
    use="As grad_cam, for maps that show only places which changed the score, with a sign. For a head of one linear"
    " layer, the map before enlargement sums to the score less the bias.",
    avoid="Where smooth maps matter more than faithful ones.",
    papers=(DRAELOS_2020,),
)
def hires_cam(relu: options.Relu = False, upsample: options.Upsample = "linear") -> Method:
    """Feature map times gradient at each place, summed over channels, of shape (N, 1, H, W)."""
    return _map("hires_cam", cams.placewise, relu, upsample)


@documented(
    "maps",
    formula="max(sum_c max(G_c, 0) * A_c, 0), A: the feature map, G: derivative of the score by it",
    latex=r"M = \max\Big(\sum_c \max(G_c, 0) \odot A_c, 0\Big), \qquad G = \frac{\partial f}{\partial A}",
    cost=ONE_PASS,
    use="For finer maps from early layers (at=), whose gradients differ from place to place.",
    avoid="Where evidence against the score matters: negative gradients are dropped.",
    papers=(JIANG_2021,),
)
def layer_cam(relu: options.Relu = True, upsample: options.Upsample = "linear") -> Method:
    """Feature map times positive gradient at each place, summed over channels, of shape (N, 1, H, W)."""
    return _map("layer_cam", cams.positive_placewise, relu, upsample)


@documented(
    "maps",
    formula="guided_backprop * grad_cam, the map enlarged to the input's size",
    latex=r"\phi = \phi^{\mathrm{guided}} \odot M^{\mathrm{GradCAM}}",
    cost=Cost("1", "2", "one of the backward passes ends at the feature map"),
    use="For pictures as sharp as those of guided_backprop that also depend on the class.",
    avoid="To judge what a model has learnt: the sharp part changes little with the weights of upper layers.",
    papers=(SELVARAJU_2017,),
)
def guided_grad_cam(
    upsample: Annotated[
        options.Upsample, Doc("How the map is enlarged to the spatial size of the input: 'linear' or 'nearest'.")
    ] = "linear",
    clip: options.Clip = False,
) -> Method:
    """Guided backpropagation times Grad-CAM, in the input's shape."""
    if upsample == "none":
        raise OptionError("guided_grad_cam needs a map of the input's size", "Known: linear, nearest.")
    guided = cams.Cam(cams.mean_weights, True, upsample, guided=True)
    return Method("guided_grad_cam", composites.guided_backprop(clip), cam=guided)


@documented(
    "maps",
    formula="max(sum_c softmax_c(f(x * scaled A_c)) A_c, 0), scaled: enlarged to the input and brought to 0 ... 1",
    latex=r"M = \max\Big(\sum_c \mathrm{softmax}_c\big(f(x \odot \hat{A}_c)\big) \, A_c, 0\Big)",
    cost=Cost("channels + 1", note="channels: those of the feature map, often hundreds"),
    use="As grad_cam, without gradients: where these saturate or vanish.",
    avoid="Where speed matters: one forward pass for each channel of the feature map.",
    papers=(WANG_2020,),
)
def score_cam(relu: options.Relu = True, upsample: options.Upsample = "linear") -> Method:
    """Feature map weighted by the scores of the input behind each of its channels, of shape (N, 1, H, W)."""
    return Method("score_cam", None, cam=cams.Cam(None, relu, upsample, masks="channels"))


@documented(
    "maps",
    formula="M_p = f of the feature map with all places but p set to 0",
    latex=r"M_p = f(A \odot e_p)",
    cost=Cost("places + 1", note="places: those of the feature map; their passes start there, and so are short"),
    use="As score_cam, without gradients and far faster: only the layers behind the feature map run again.",
    avoid="Where places work together: each is looked at alone.",
    papers=(BYUN_2022,),
)
def recipro_cam(relu: options.Relu = False, upsample: options.Upsample = "linear") -> Method:
    """Score of the feature map with each place alone, of shape (N, 1, H, W)."""
    return Method("recipro_cam", None, cam=cams.Cam(None, relu, upsample, masks="places"))


def _map(name: str, weigh: cams.Weigh, relu: bool, upsample: cams.Upsampling, pooled: bool = False) -> Method:
    return Method(name, composites.gradient(), cam=cams.Cam(weigh, relu, upsample, pooled))
