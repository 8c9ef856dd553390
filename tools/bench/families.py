"""The measured method families: our method in each, the peers that have it, and the arithmetic that it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tools.bench.nets import Net

WINDOW, WINDOWS = 32, 49  # of occlusion, side by side in a picture of 224 x 224
SAMPLES = 32  # points of methods that sample, times samples, and `FEWEST` at least
FEWEST = 8
BOX = {"low": -3.0, "high": 3.0}


def _any(_: Net) -> bool:
    return True


def _image(net: Net) -> bool:
    return net.kind == "image"


@dataclass(frozen=True)
class Family:
    """A family of methods.

    Attributes
    ----------
    method, options
        Our method and its options.
    bound
        Forward passes that the arithmetic needs, per point.
    peers
        Name -> the function of `tools.bench.peers` that makes the peer, and its arguments.
    windows
        Number of points that the method evaluates, if it does not depend on `sampled`; costs are per point.
    sampled
        Name of our option for the number of points.
    applies
        Whether a network supports the family.
    random
        Whether everyone draws different random numbers, so that attributions cannot be compared.
    """

    method: str
    bound: float
    peers: dict[str, tuple[str, tuple[Any, ...]]]
    options: dict[str, Any] = field(default_factory=dict)
    windows: int = 1
    sampled: str | None = None
    applies: Callable[[Net], bool] = _any
    random: bool = False

    def points(self, batch: int) -> int:
        """Return the number of points that the method evaluates."""
        return max(FEWEST, SAMPLES // batch) if self.sampled else self.windows

    def options_at(self, batch: int) -> dict[str, Any]:
        """Return our options for a number of points."""
        return {**self.options, **({self.sampled: self.points(batch)} if self.sampled else {})}


def _lrp(composite: str, bound: float, theirs: str, **options: Any) -> Family:
    peers = {"zennit": ("zennit", (theirs, *options.items()))}
    return Family("lrp", bound, peers, {"composite": composite, **options})


FAMILIES = {
    "gradient": Family("gradient", 2.0, {"torch": ("autograd", ()), "captum": ("captum", ("Saliency",))}),
    "guided_backprop": Family(
        "guided_backprop", 2.0, {"captum": ("captum", ("GuidedBackprop",))}, applies=lambda net: net.relu
    ),
    "integrated_gradients": Family(
        "integrated_gradients", 2.0, {"captum": ("integrated_gradients", ())}, sampled="steps"
    ),
    "smoothgrad": Family("smoothgrad", 2.0, {"captum": ("smoothgrad", ())}, sampled="samples", random=True),
    "lrp epsilon": Family("lrp", 2.0, {"captum": ("captum_lrp", ())}, {"rule": "epsilon"}),
    "lrp epsilon_plus_flat": _lrp("epsilon_plus_flat", 3.0, "EpsilonPlusFlat"),
    "lrp epsilon_alpha2_beta1": _lrp("epsilon_alpha2_beta1", 4.0, "EpsilonAlpha2Beta1"),
    "lrp epsilon_gamma_box": _lrp("epsilon_gamma_box", 3.0, "EpsilonGammaBox", **BOX),
    "deeplift": Family("deeplift", 2.0, {"captum": ("deeplift", ())}),
    "grad_cam": Family("grad_cam", 1.0, {"captum": ("grad_cam", ())}, applies=lambda net: net.layer is not None),
    "occlusion": Family(
        "occlusion",
        1.0,
        {"captum": ("occlusion", ())},
        {"window": WINDOW, "stride": WINDOW},
        windows=WINDOWS,
        applies=_image,
    ),
    "rise": Family("rise", 1.0, {"torch": ("rise", ())}, sampled="samples", applies=_image, random=True),
}
