"""Class activation maps."""

from __future__ import annotations

from onnxplain.arguments import check_flag
from onnxplain.composites import composite as composites
from onnxplain.errors import OptionError
from onnxplain.methods import cams
from onnxplain.methods.method import Method


def cam(relu: bool = False, upsample: str = "linear") -> Method:
    """Feature map weighted by the linear layer behind global average pooling (Zhou et al. 2016); (N, 1, H, W)."""
    return _map("cam", cams.sum_weights, relu, upsample, pooled=True)


def grad_cam(relu: bool = True, upsample: str = "linear") -> Method:
    """Last feature map (or at=), its channels weighted by mean gradients (Selvaraju et al. 2017); (N, 1, H, W)."""
    return _map("grad_cam", cams.mean_weights, relu, upsample)


def grad_cam_plus_plus(relu: bool = True, upsample: str = "linear") -> Method:
    """Grad-CAM with weights from positive gradients and curvature (Chattopadhyay et al. 2018); (N, 1, H, W)."""
    return _map("grad_cam_plus_plus", cams.curvature_weights, relu, upsample)


def hires_cam(relu: bool = False, upsample: str = "linear") -> Method:
    """Feature map times gradient, place by place (Draelos and Carin 2020); (N, 1, H, W)."""
    return _map("hires_cam", cams.placewise, relu, upsample)


def layer_cam(relu: bool = True, upsample: str = "linear") -> Method:
    """Feature map times positive gradient, place by place, for early layers too (Jiang et al. 2021); (N, 1, H, W)."""
    return _map("layer_cam", cams.positive_placewise, relu, upsample)


def guided_grad_cam(upsample: str = "linear", clip: bool = False) -> Method:
    """Guided backprop times Grad-CAM (Selvaraju et al. 2017), in the input's shape; clip=true: at ReLU6, too."""
    check_flag("clip", clip)
    if upsample == "none":
        raise OptionError("guided_grad_cam needs a map of the input's size", "Known: linear, nearest.")
    guided = cams.Cam(cams.mean_weights, True, upsample, guided=True)
    return Method("guided_grad_cam", composites.guided_backprop(clip), cam=guided)


def score_cam(relu: bool = True, upsample: str = "linear") -> Method:
    """Feature map weighted by the scores of the input behind each channel (Wang et al. 2020); (N, 1, H, W); slow."""
    check_flag("relu", relu)
    return Method("score_cam", None, cam=cams.Cam(None, relu, upsample, masks=cams.CHANNELS))


def recipro_cam(relu: bool = False, upsample: str = "linear") -> Method:
    """Score of the feature map at one place after another, alone (Byun and Lee 2022); (N, 1, H, W)."""
    check_flag("relu", relu)
    return Method("recipro_cam", None, cam=cams.Cam(None, relu, upsample, masks=cams.PLACES))


def _map(name: str, weigh: cams.Weigh, relu: bool, upsample: str, pooled: bool = False) -> Method:
    check_flag("relu", relu)
    return Method(name, composites.gradient(), cam=cams.Cam(weigh, relu, upsample, pooled))
