"""Methods that replace the derivative of ReLUs."""

from __future__ import annotations

from typing import Annotated

from onnxplain import composites
from onnxplain.arguments import Positive, number
from onnxplain.methods import options
from onnxplain.methods.gradients import ONE_PASS
from onnxplain.methods.method import Method
from onnxplain.methods.papers import DOMBROWSKI_2019, KIM_2019, SPRINGENBERG_2015, ZEILER_2014
from onnxplain.methods.spec import Cost, Doc, documented


@documented(
    "rectifiers",
    formula="g with max(ct, 0) * [x > 0] at each ReLU, ct: the cotangent of its output, x: its input",
    latex=r"\bar{x} = \max(\bar{y}, 0) \, [x > 0] \quad \text{at each } y = \max(x, 0)",
    cost=ONE_PASS,
    use="For sharp pictures of the shapes that raised the score of a convolutional network with ReLUs.",
    avoid="To compare classes, or to judge what a model has learnt: the pictures change little with the class and with"
    " the weights of upper layers. Without ReLUs it is the gradient.",
    papers=(SPRINGENBERG_2015,),
)
def guided_backprop(clip: options.Clip = False) -> Method:
    """Gradient that keeps only its positive part at every ReLU."""
    return Method("guided_backprop", composites.guided_backprop(clip))


@documented(
    "rectifiers",
    formula="g with max(ct, 0) at each ReLU, ct: the cotangent of its output",
    latex=r"\bar{x} = \max(\bar{y}, 0) \quad \text{at each } y = \max(x, 0)",
    cost=ONE_PASS,
    use="To picture what a unit of a convolutional network with max pooling responds to; it starts from the unit's own"
    " activation with values=True, as in the paper.",
    avoid="To compare classes. Without max pooling, the picture depends on the weights alone and not on the input;"
    " without ReLUs it is the gradient.",
    papers=(ZEILER_2014,),
)
def deconvnet(
    clip: options.Clip = False,
    values: Annotated[
        bool,
        Doc(
            "Whether the walk backwards starts from the score itself instead of from 1.",
            source=f"True: {ZEILER_2014.citation}; False: captum",
        ),
    ] = False,
) -> Method:
    """Gradient with the positive part of the cotangent in place of the derivative of every ReLU."""
    return Method("deconvnet", composites.deconvnet(clip), value_seed=values)


@documented(
    "rectifiers",
    formula="g with ct * [y * ct > q] at each ReLU, q: the percentile of y * ct over the sample, ct: the cotangent of"
    " y",
    latex=r"\bar{x} = \bar{y} \, [y \bar{y} > q] \quad \text{at each } y = \max(x, 0)",
    cost=Cost("1", "1"),
    use="For gradients with less noise than the plain one: only elements that matter most in each layer pass it on.",
    avoid="Where small contributions count together: all but the largest 2 percent of each layer are dropped by"
    " default.",
    papers=(KIM_2019,),
)
def rect_grad(
    percentile: Annotated[
        float,
        number(least=0, most=100),
        Doc(
            "Share of the elements of a ReLU, those of least output times cotangent, that pass no gradient.",
            "percent of the elements of a layer, per sample",
            KIM_2019.citation,
        ),
    ] = 98.0,
    clip: options.Clip = False,
) -> Method:
    """Gradient that passes a ReLU only where output times cotangent is above a percentile of the layer."""
    return Method("rect_grad", composites.rect_grad(float(percentile), clip))


@documented(
    "rectifiers",
    formula="g with ct * sigmoid(beta * x) at each ReLU, ct: the cotangent of its output, x: its input",
    latex=r"\bar{x} = \bar{y} \, \sigma(\beta x) \quad \text{at each } y = \max(x, 0)",
    cost=ONE_PASS,
    use="For gradients that change little when the input does: small changes that leave the prediction as it is can"
    " change the plain gradient of a network with ReLUs at will.",
    avoid="Where the gradient of the model itself is wanted: this is that of softplus units at the activations of"
    " ReLUs. Without ReLUs it is the gradient.",
    papers=(DOMBROWSKI_2019,),
)
def beta_smooth(
    beta: Annotated[
        Positive,
        Doc(
            "Sharpness of softplus, log(1 + exp(beta x)) / beta: the greater, the nearer to ReLU.",
            "1 / units of the ReLU's input",
            f"{DOMBROWSKI_2019.citation}; the default is zennit's",
        ),
    ] = 10.0,
) -> Method:
    """Gradient with the derivative of softplus in place of that of every ReLU."""
    return Method("beta_smooth", composites.beta_smooth(float(beta)))
