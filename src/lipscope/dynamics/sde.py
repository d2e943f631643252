"""The stochastic differential equation of the log Lipschitz product: its coefficients, from which `prediction` forecasts.

From `d theta = -grad L dt + sqrt(eta) Sigma^(1/2) dB` (one step = `eta` units of time, `Sigma` the covariance of a batch's
gradient) and Ito's lemma, for a layer with norm `sigma` (the abstract of arXiv 2506.18588 names these drivers; the formulas
are derived here):

    mu     = -D sigma[grad L] / sigma                    gradient flow
    kappa  = eta E H(xi, xi) / (2 sigma)   >= 0          noise on the Hessian of the norm
    l^2    = eta Var(D sigma[g]) / sigma^2               noise on its Jacobian
    d log sigma = (mu + kappa - l^2 / 2) dt + l dB,      Z = sum of log sigma over the calls of all layers,
    Var dZ = eta Var(sum D sigma_l[g] / sigma_l) dt      with the covariances between layers; the drift keeps sum l^2 / 2.

It is a first order approximation: the curvature of the flow, `eta H(grad L, grad L) / (2 sigma)`, is missing, noise at one
step is undone by the flow of the next ones, and `mu` depends on the state. Hence the flags of a forecast.
"""

from __future__ import annotations

import math

from lipscope.claims.errors import UsageError
from lipscope.dynamics.identity import StepTerms
from lipscope.dynamics.noise import NoiseLevels
from lipscope.dynamics.prediction import Coefficients, LayerCoefficients


def coefficients(levels: NoiseLevels, eta: float, step: int = 0, q_ratio: float = math.nan) -> Coefficients:
    """The coefficients at a moment, from the noise of batches as they are trained with, for plain SGD with step size `eta`.

    Raises:
        UsageError: the step size is not positive.
    """
    if not eta > 0:
        raise UsageError(f"expected a step size above 0, got {eta}")
    layers = tuple(
        LayerCoefficients(
            level.layer,
            drift=-level.calls * level.drift / level.norm,
            noise_curvature=level.calls * eta * level.curvature / (2 * level.norm),
            diffusion=level.calls**2 * eta * level.variance / level.norm**2,
            correction=-level.calls * eta * level.variance / level.norm**2 / 2,
            flow_curvature=level.calls * eta * level.flow_curvature / (2 * level.norm),
        )
        for level in levels.layers
    )
    return Coefficients(step, eta, layers, eta * levels.cross_variance, q_ratio)


def observed_coefficients(step: StepTerms, eta: float, number: int) -> Coefficients:
    """The coefficients from one observed step of plain SGD with a reference gradient, at no further cost.

    The flow is that of the reference. Noise of one step, squared, is an unbiased estimate of its variance from a single draw,
    and so is its curvature of the expected one: rough at a step, and right when they are summed over many.

    Args:
        step: with the terms of the split into flow and noise.
        eta: the step size it was made with.
        number: optimizer steps done before it.

    Raises:
        UsageError: the step was not split, or the step size is not positive.
    """
    if not eta > 0:
        raise UsageError(f"expected a step size above 0, got {eta}")
    if not step.layers or any("flow" not in layer.terms for layer in step.layers if layer.terms):
        raise UsageError("expected a step split into flow and noise, got another; it needs plain SGD and a reference")
    nan = math.nan
    layers, noise = [], 0.0
    for layer in step.layers:
        terms = layer.terms or dict.fromkeys(("flow", "noise", "noise_curvature", "flow_curvature"), nan)
        noise += terms["noise"]
        squared = terms["noise"] ** 2 / eta
        layers.append(
            LayerCoefficients(
                layer.layer,
                drift=terms["flow"] / eta,
                noise_curvature=terms["noise_curvature"] / eta,
                diffusion=squared,
                correction=-squared / (2 * layer.calls),
                flow_curvature=terms["flow_curvature"] / eta,
            )
        )
    ratio = max(layer.q_ratio for layer in step.layers)
    return Coefficients(number, eta, tuple(layers), noise**2 / eta, ratio)
