"""Signals on their way through depth: energies between bands layer by layer, noise, and the harmonics of a probe."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipscope.claims.errors import UsageError
from lipscope.frequency.bands import Bands, band_masks
from lipscope.frequency.evaluation import Model
from lipscope.frequency.layout import Layout
from lipscope.frequency.statistics import number, numbers, standard_error
from lipscope.network.graph import Graph
from lipscope.network.nodes import AddConstant, DivConstant, MulConstant, Node, Pad, Reshape, Slice, Transpose
from lipscope.rules.questions import evaluate

PASSIVE = (Reshape, Transpose, Slice, Pad, AddConstant, MulConstant, DivConstant)
"""Kinds of node that are not shown as layers of their own."""


@dataclass(frozen=True, eq=False)
class Transfer:
    """How the energy of each input band is spread over bands at one layer.

    Attributes:
        node: the layer's index in the graph.
        name: its name in the user's model.
        kind: its kind.
        bands: the bands of its grid; empty rings of a coarse grid are left out, so there may be fewer than at the input.
        energy: (input bands, bands): mean over data and noise of `|P_c J_l(x) h|^2` for random unit vectors h of the band.
        se: standard errors.
        gain: (input bands,): the sum of each row, mean of `|J_l(x) h|^2`, how much of a band's energy is there at all.
        gain_se: standard errors; entries of a row are not independent, so that they do not follow from `se`.
    """

    node: int
    name: str
    kind: str
    bands: Bands
    energy: Tensor
    se: Tensor
    gain: Tensor
    gain_se: Tensor

    def to_json(self) -> dict[str, object]:
        """The same as plain numbers."""
        return {
            "layer": self.name, "kind": self.kind, "grid": list(self.bands.grid), "low": list(self.bands.low),
            "high": list(self.bands.high), "energy": [numbers(row) for row in self.energy],
            "energy_se": [numbers(row) for row in self.se], "gain": numbers(self.gain), "gain_se": numbers(self.gain_se),
        }  # fmt: skip


def layers_on_grids(graph: Graph, layout: Layout) -> list[int]:
    """The nodes whose value is (1, C, *grid), a grid of as many axes as the input's, with more than one place."""
    reaching, axes, dimensions = graph.ancestors(graph.output), _grid_axes(graph, layout), len(layout.axes)
    last = tuple(range(2, 2 + dimensions))
    return [
        i for i, node in enumerate(graph.nodes)
        if i > 0 and i in reaching and axes.get(i) == last and len(node.shape) == 2 + dimensions
        and math.prod(node.shape[2:]) > 1 and node.inputs and not isinstance(node, PASSIVE)
    ]  # fmt: skip


def _grid_axes(graph: Graph, layout: Layout) -> dict[int, tuple[int, ...]]:
    """For each node which axes of its value are the grid's; nodes of which that is not known are left out.

    Transpositions move them. A flat value that is given more axes is taken to have its channels first; any other change of axes
    loses the grid (patches, heads of attention).
    """
    nodes, first = graph.nodes, len(graph.nodes[0].shape) - len(layout.shape)
    found: dict[int, tuple[int, ...]] = {}
    if first >= 0 and nodes[0].shape[first:] == layout.shape:
        found[0] = tuple(a + first for a in layout.axes)
    for i, node in enumerate(nodes):
        source = next((j for j in node.inputs if j in found), node.inputs[0] if node.inputs else None)
        if source is None:
            continue
        before, after = nodes[source].shape, node.shape
        own = found.get(source)
        if isinstance(node, Transpose) and own is not None:
            found[i] = tuple(node.permutation.index(a) for a in own)
        elif isinstance(node, Reshape):
            if own is not None and _without_ones(before) == _without_ones(after):
                found[i] = tuple(a + len(after) - len(before) for a in own)
            elif len(_without_ones(before)) <= 1:
                found[i] = tuple(range(2, len(after)))
        elif own is not None and len(before) == len(after):
            found[i] = own
    return found


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without the axes of length 1 that it begins with."""
    kept = next((a for a, n in enumerate(shape) if n != 1), len(shape))
    return shape[kept:]


def transfer_matrices(
    graph: Graph, layout: Layout, bands: Bands, x: Tensor, *, generator: torch.Generator | None = None
) -> list[Transfer]:
    """The transfer matrices of all layers that keep a channel-first grid, measured at x with one noise vector an example.

    First order: the Jacobian of each layer at x. Rows need not sum to 1: they sum to the layer's energy gain of the band.

    Args:
        graph: the network.
        layout: where the grid is in its input.
        bands: of the input.
        x: examples (n, C, *grid), float64.
        generator: of the noise; seeded with 0 if None.

    Raises:
        UsageError: the bands are custom, so that there are none for other grids.
    """
    if bands.rings == 0:
        raise UsageError("expected square, round or octave bands for transfer between layers, got custom ones")
    wanted = layers_on_grids(graph, layout)
    if not wanted:
        return []
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    found: dict[int, list[Tensor]] = {i: [] for i in wanted}
    grids = {i: band_masks(graph.nodes[i].shape[2:], bands.rings, bands.kind) for i in wanted}

    push = _Pushforward(graph, layout, wanted, x)
    for band in range(bands.count):
        noise = bands.project(torch.randn(x.shape, generator=generator, dtype=x.dtype), band)
        noise = noise / noise.flatten(1).norm(dim=1).reshape(-1, *(1,) * (x.ndim - 1))
        for i, image in zip(wanted, push(noise), strict=True):
            found[i].append(grids[i].power(image).sum(dim=1))
    result = []
    for i in wanted:
        energies = torch.stack(found[i], dim=1)
        node, gains = graph.nodes[i], energies.sum(dim=2)
        result.append(
            Transfer(
                i, _name(node), _kind(node), grids[i], energies.mean(dim=0), standard_error(energies),
                gains.mean(dim=0), standard_error(gains),
            )
        )  # fmt: skip
    return result


def _name(node: Node) -> str:
    return node.name or node.kind


def _kind(node: Node) -> str:
    function = getattr(node, "function", None)
    return node.kind if function is None else str(function)


class _Pushforward:
    """J_l(x) h for several layers at once, by two reverse passes: `u -> J^T u` is linear, and its derivative is J."""

    def __init__(self, graph: Graph, layout: Layout, wanted: list[int], x: Tensor) -> None:
        with torch.enable_grad():
            points = x.detach().clone().requires_grad_()
            self._values = _values(graph, layout.scatter(points), wanted)
            self._alive = [v for v in self._values if v.requires_grad]
            self._dummies = [torch.zeros_like(v, requires_grad=True) for v in self._alive]
            if self._alive:
                self._back = torch.autograd.grad(self._alive, points, self._dummies, create_graph=True)[0]

    def __call__(self, h: Tensor) -> list[Tensor]:
        images: list[Tensor | None] = []
        if self._alive and self._back.requires_grad:
            images = list(torch.autograd.grad(self._back, self._dummies, h, retain_graph=True, allow_unused=True))
        found = iter(images)
        pushed = [next(found, None) if v.requires_grad else None for v in self._values]
        return [torch.zeros_like(v) if p is None else p for v, p in zip(self._values, pushed, strict=True)]


def _values(graph: Graph, x: Tensor, wanted: list[int]) -> list[Tensor]:
    """The values (B, C, *grid) of the wanted nodes."""
    known: dict[int, Tensor] = {0: x.reshape(x.shape[0], *graph.nodes[0].shape)}
    needed = set().union(*(graph.ancestors(i) for i in wanted))
    for index in sorted(needed - {0}):
        node = graph.nodes[index]
        value = evaluate(node, *(known[i] for i in node.inputs))
        known[index] = value if value.shape[0] == x.shape[0] else value.expand(x.shape[0], *node.shape)
    return [known[i].reshape(x.shape[0], -1, *graph.nodes[i].shape[2:]) for i in wanted]


# ------------------------------------------------------------------------------------------------------- noise


def noise_weights(grid: tuple[int, ...], exponent: float) -> Tensor:
    """Variances of noise with power law `|w|^-exponent`, (*grid), mean 1; exponent 0 is white.

    Frequency 0, where the law is infinite, has the variance of the lowest other frequency.
    """
    axes = torch.meshgrid(*(torch.fft.fftfreq(n, dtype=torch.float64) for n in grid), indexing="ij")
    length = torch.stack(axes).square().sum(dim=0).sqrt()
    positive = length[length > 0]
    length = length.clamp_min(float(positive.min()) if positive.numel() else 1.0)
    weights = length.pow(-exponent)
    return weights / weights.mean()


@dataclass(frozen=True)
class NoiseResponse:
    """Mean power of the output per unit variance of a coefficient, to first order, at n examples.

    Attributes:
        exponent: of the noise's power law, 0 for white.
        response: `sum_w S(w) |F J(x)|^2(w)`, mean over the examples, S having mean 1.
        se: its standard error.
    """

    exponent: float
    response: float
    se: float

    def to_json(self) -> dict[str, object]:
        """The same as plain numbers."""
        return {"exponent": self.exponent, "response": self.response, "response_se": number(self.se)}


def noise_response(power: Tensor, exponent: float = 0.0) -> NoiseResponse:
    """The response to noise from the power (n, *grid) of Jacobians; for white noise it is the mean of `|J|_F^2`."""
    weights = noise_weights(tuple(power.shape[1:]), exponent).to(power.dtype)
    values = (power * weights).flatten(1).sum(dim=1)
    return NoiseResponse(exponent, float(values.mean()), float(standard_error(values)))


def noise_bound(sizes: tuple[int, ...], channels: int, outputs: int, gains: list[float]) -> float:
    """`sum_b min(n_b, rank J) K_b^2`: bounds the response to white noise at any x, given upper bounds K_b."""
    return sum(min(n * channels, outputs) * k * k for n, k in zip(sizes, gains, strict=True))


# --------------------------------------------------------------------------------------------------- harmonics


@dataclass(frozen=True)
class HarmonicBound:
    """What a constant K allows of `g(t) = f(x + a cos(2 pi t) d)`, over one period.

    Attributes:
        reach: `a K |d|`.
        slope: g has constant at most `2 pi a K |d|`.
        energy: `sum over n != 0 of n^2 |g_hat(n)|^2 <= (a K |d|)^2/2`, with equality for linear f whose gain along d is K.
    """

    reach: float
    slope: float
    energy: float

    def coefficient(self, n: int) -> float:
        """`|g_hat(n)| <= a K |d|/(2 |n|)` for n != 0: the factor 1/2 comes from the energy being shared by n and -n.

        Raises:
            UsageError: n is 0, where there is no bound.
        """
        if n == 0:
            raise UsageError("expected a harmonic other than 0: a constant says nothing of the mean")
        return self.reach / (2 * abs(n))


def harmonic_bound(constant: float, amplitude: float, length: float = 1.0) -> HarmonicBound:
    """The bounds for an upper bound K of f's constant (or of its gain along d), amplitude a and `|d|_2 = length`.

    `|g'(t)| <= 2 pi a K |d| |sin 2 pi t|`, whose mean square is `(2 pi a K |d|)^2/2`; by Parseval that is at least
    `sum (2 pi n)^2 |g_hat(n)|^2`, and coefficients of n and -n have the same length.
    """
    reach = abs(amplitude) * constant * length
    return HarmonicBound(reach, 2 * math.pi * reach, reach * reach / 2)


def harmonics(model: Model, x: Tensor, direction: Tensor, amplitude: float, samples: int = 256) -> Tensor:
    """`|g_hat(n)|_2` for n = 0 .. samples/2 of `g(t) = f(x + a cos(2 pi t) d)`, from samples over one period.

    Args:
        model: takes a batch (B, C, *grid).
        x: one example (C, *grid).
        direction: d, of the same shape.
        amplitude: a.
        samples: how many; harmonics beyond half of them fold back.
    """
    t = torch.arange(samples, dtype=torch.float64) / samples
    wave = (amplitude * torch.cos(2 * math.pi * t)).to(x.dtype).reshape(-1, *(1,) * x.ndim)
    with torch.no_grad():
        values = model(x.unsqueeze(0) + wave * direction).reshape(samples, -1)
    length: Tensor = (torch.fft.rfft(values, dim=0) / samples).abs().norm(dim=1)
    return length
