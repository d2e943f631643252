"""Softmax, log-softmax, and normalisation by statistics of the example itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lipscope.claims.norms import Norm
from lipscope.claims.rounding import LARGEST, down, gamma, quotient_up, sqrt_down, sqrt_up, up
from lipscope.network.nodes import LayerNorm, LogSoftmax, RMSNorm, Softmax
from lipscope.rules.affine import UNDERFLOW, widen
from lipscope.rules.boxes import hull, others, outward, smallest_magnitude, sum_error
from lipscope.rules.curves import CANCELLATION, TINY
from lipscope.rules.questions import Interval, NoRule, box_image, evaluate, gain
from lipscope.rules.tensors import behind_batch


@evaluate.register
def _(node: Softmax, *inputs: Tensor) -> Tensor:
    return torch.softmax(inputs[0], node.axis + 1)


@evaluate.register
def _(node: LogSoftmax, *inputs: Tensor) -> Tensor:
    return torch.log_softmax(inputs[0], node.axis + 1)


@evaluate.register
def _(node: LayerNorm, *inputs: Tensor) -> Tensor:
    axes = behind_batch(node.axes)
    centred = inputs[0] - inputs[0].mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True) + node.eps).sqrt()


@evaluate.register
def _(node: RMSNorm, *inputs: Tensor) -> Tensor:
    return inputs[0] / (inputs[0].square().mean(behind_batch(node.axes), keepdim=True) + node.eps).sqrt()


@box_image.register(Softmax)
@box_image.register(LogSoftmax)
def _(node: Softmax | LogSoftmax, *inputs: Interval) -> Interval:
    """The exact range: an entry grows with its own operand and falls with every other one.

    With D = log sum of exp of the others, minus the entry: softmax is 1/(1 + exp D), log-softmax is -log(1 + exp D).
    """
    (box,) = inputs
    lower, upper = box.lower.movedim(node.axis, -1), box.upper.movedim(node.axis, -1)
    at_lower, at_upper = _log_odds(upper, lower), _log_odds(lower, upper)
    count = lower.shape[-1]
    # D is a difference of numbers below 750 wherever its exponential counts; the sum of n of them adds its own error.
    absolute = TINY
    if isinstance(node, Softmax):
        low, high = torch.sigmoid(-at_lower).nan_to_num(nan=0.0), torch.sigmoid(-at_upper).nan_to_num(nan=1.0)
    else:
        zero = torch.zeros_like(at_lower)
        low = -torch.logaddexp(at_lower, zero).nan_to_num(nan=math.inf, posinf=math.inf)
        high = -torch.logaddexp(at_upper, zero).nan_to_num(nan=0.0, posinf=math.inf)
        # The textbook formula, which the checker may use, has x and the logarithm of the sum cancel.
        absolute = CANCELLATION + 8 * gamma(count + 4)
    image = outward(low, high, 2 * sum_error(count), absolute)
    image = hull(image, _saturated(node, lower, upper, image))
    return Interval(image.lower.movedim(-1, node.axis), image.upper.movedim(-1, node.axis))


def _saturated(node: Softmax | LogSoftmax, lower: Tensor, upper: Tensor, image: Interval) -> Interval:
    """What is said of slices so wide that exponentials relative to the largest entry vanish; elsewhere the image itself.

    The checker's enclosure becomes this wide there, and ours has to hold it.
    """
    top = upper.amax(-1, keepdim=True)
    if isinstance(node, Softmax):
        low, high = torch.zeros_like(lower), 1.0
    else:
        low, high = ((lower - top) - 800).nan_to_num(nan=-math.inf, neginf=-math.inf), 0.0
    wide = ~(top - lower.amin(-1, keepdim=True) < 700)
    return Interval(torch.where(wide, low, image.lower), torch.where(wide, high, image.upper))


def _log_odds(rest: Tensor, own: Tensor) -> Tensor:
    """`log(sum over j != i of exp(rest_j)) - own_i` along the last axis; NaN where infinite ends meet.

    Each sum is scaled by its own largest term, which is the second largest of all for the entry that is the largest: were
    it scaled by the largest, it could vanish beside an own value that is far lower.
    """
    if rest.shape[-1] == 1:
        return torch.full_like(own, -math.inf)
    first, place = rest.max(-1, keepdim=True)
    without = rest.scatter(-1, place, -math.inf)
    second = without.amax(-1, keepdim=True)
    is_first = torch.zeros_like(rest, dtype=torch.bool).scatter(-1, place, True)
    total = torch.where(is_first, torch.exp(without - second).sum(-1, keepdim=True), others(torch.exp(rest - first)))
    return (torch.where(is_first, second, first) - own) + total.log()


@box_image.register
def _(node: RMSNorm, *inputs: Interval) -> Interval:
    """The exact range, see `_normalised`."""
    slices, restore = _slices(inputs[0], node)
    return restore(_normalised(slices, node.eps))


@box_image.register
def _(node: LayerNorm, *inputs: Interval) -> Interval:
    """The range of the RMSNorm over the box of the centred slice."""
    slices, restore = _slices(inputs[0], node)
    return restore(_normalised(_centred(slices), node.eps))


def _slices(box: Interval, node: LayerNorm | RMSNorm) -> tuple[Interval, Callable[[Interval], Interval]]:
    """The box with the node's axes flattened into the last one, and the way back."""
    axes = list(node.axes)
    kept = [a for a in range(len(node.shape)) if a not in axes]
    order = kept + axes
    shape = [node.shape[a] for a in order]
    inverse = [order.index(a) for a in range(len(order))]

    def flatten(x: Tensor) -> Tensor:
        return x.permute(order).reshape(*(node.shape[a] for a in kept), -1)

    def restore(image: Interval) -> Interval:
        lower, upper = (x.reshape(shape).permute(inverse) for x in (image.lower, image.upper))
        return Interval(lower, upper)

    return Interval(flatten(box.lower), flatten(box.upper)), restore


def _centred(box: Interval) -> Interval:
    """The exact range of an entry minus its slice's mean, `(1 - 1/n) x_i - (sum of the others)/n`, rounded outward."""
    count = box.lower.shape[-1]
    spread = (box.upper - box.lower) / count
    low = box.lower - box.upper.mean(-1, keepdim=True) + spread
    high = box.upper - box.lower.mean(-1, keepdim=True) - spread
    # The mean has gamma_n, the rest four roundings; the factor leaves room for the checker's way of summation.
    error = 16 * gamma(count + 4) * (box.magnitude + box.magnitude.mean(-1, keepdim=True)) + UNDERFLOW
    return widen(low, high, error)


def _normalised(box: Interval, eps: float) -> Interval:
    """The exact range of `x_i / sqrt(mean(x^2) + eps)` along the last axis.

    It grows with x_i and its absolute value falls with the squares of the others: the upper end is at u_i with the
    smallest others if u_i >= 0, with the largest if not; the lower end mirrors it. It is never larger than sqrt(n).
    """
    count = box.lower.shape[-1]
    least, most = others(smallest_magnitude(box).square()), others(box.magnitude.square())
    most_possible = math.sqrt(count)

    def at(x: Tensor, rest: Tensor, worst: float) -> Tensor:
        square = (x.square() + rest) / count + eps
        # Where squares may have overflowed or vanished, only the worst case is said.
        return torch.where((square > 1e-280) & (square < 1e300), x / square.sqrt(), worst)

    low = at(box.lower, torch.where(box.lower >= 0, most, least), -most_possible)
    high = at(box.upper, torch.where(box.upper >= 0, least, most), most_possible)
    return outward(low, high, 2 * sum_error(count), TINY)


def _smallest_square(box: Interval) -> float:
    """At most the smallest mean square of any slice (last axis) of the box."""
    count = box.lower.shape[-1]
    squares = smallest_magnitude(box).square().nan_to_num(posinf=LARGEST)
    smallest = float(squares.mean(-1).nan_to_num(posinf=LARGEST).min())
    # The relative margin is for the checker, which has to reach the same constant with its own rounding; the absolute one
    # for squares that vanish.
    return max(0.0, down(smallest * (1 - 1e-10 - 4 * gamma(count + 4))) - TINY)


@gain.register
def _(node: Softmax, norm: Norm, region: Interval | None) -> float:
    """1/2 (arXiv 2510.23012; derivation in docs/certificate.md); 0 for a single entry, which is always 1."""
    return 0.0 if node.shape[node.axis] == 1 else 0.5


@gain.register
def _(node: LogSoftmax, norm: Norm, region: Interval | None) -> float:
    """The norm of `I - 1 p^T`: max(1, n - 1), sqrt(n), 2; 0 for a single entry, which is always 0."""
    count = node.shape[node.axis]
    if count == 1:
        return 0.0
    return {"l1": float(max(1, count - 1)), "l2": sqrt_up(count), "linf": 2.0}[norm]


@gain.register
def _(node: RMSNorm, norm: Norm, region: Interval | None) -> float:
    """1/s in l2 and (1 + sqrt(n))/2/s in l1 and linf, s^2 = eps + the smallest mean square (docs/certificate.md)."""
    count = math.prod(node.shape[a] for a in node.axes)
    smallest = 0.0 if region is None else _smallest_square(_slices(region, node)[0])
    factor = 1.0 if norm == "l2" else up(up(1 + sqrt_up(count)) / 2)
    return _over_root(node, factor, smallest)


@gain.register
def _(node: LayerNorm, norm: Norm, region: Interval | None) -> float:
    """1/s in l2, min(2 (1 - 1/n) + (sqrt(n) - 1)/2, sqrt(n))/s in l1 and linf, s^2 = eps + the smallest variance."""
    count = math.prod(node.shape[a] for a in node.axes)
    if count == 1:
        return 0.0
    smallest = 0.0 if region is None else _smallest_square(_centred(_slices(region, node)[0]))
    factor = 1.0
    if norm != "l2":
        root = sqrt_up(count)
        factor = min(up(up(2 * up(1 - down(1 / count))) + up(up(root - 1) / 2)), root)
    return _over_root(node, factor, smallest)


def _over_root(node: LayerNorm | RMSNorm, factor: float, smallest: float) -> float:
    """`factor / sqrt(smallest + eps)`, rounded upward."""
    square = smallest + node.eps
    square = square if smallest == 0 else down(square)
    if square <= 0:
        raise NoRule(
            node,
            "gain",
            f"{node.kind} with eps {node.eps:g} has unbounded slope where its input is "
            f"{'constant' if isinstance(node, LayerNorm) else 'zero'}; give a box region away from there, or an eps > 0",
        )
    return quotient_up(factor, sqrt_down(square))
