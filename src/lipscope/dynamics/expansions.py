"""The operator norm of one layer around its weights: value, gap, and its first and second derivatives in changes of the weights.

All expansions answer the same questions through the *image* of a change `G`, a vector that depends linearly on `G` and from
which both derivatives follow: `(G v, G^T u)` for a linear operator with top singular pair `(u, v)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from lipscope.dynamics.krylov import KrylovForm, NotFoundError, best_form
from lipscope.dynamics.operator_calculus import GramForm, ThinSVD, crossing_ratio, first_form, second_form, thin_svd

Apply = Callable[[Tensor, Tensor], Tensor]
"""`K(W) x` without bias, linear in both: weights, inputs (B, ..) to outputs (B, ..)."""


MANY = 8
"""One decomposition is cheaper than solves for more directions than this part of the shorter side."""


class Expansion(ABC):
    """The norm of an operator that depends linearly on weights, around some weights, in float64.

    Attributes:
        norm: the largest singular value `sigma` (computed, not enclosed).
        gap: distance to the next one; 0 where it is not simple, and then no derivative is meant.
        direction: `grad sigma`, of the shape of the weights: `D sigma[G] = <direction, G>`.
        note: why the derivatives cannot be trusted, or empty.
    """

    norm: float
    gap: float
    direction: Tensor
    note: str = ""

    @property
    def simple(self) -> bool:
        """Whether the derivatives mean anything: a positive norm, and a gap that rounding can tell from none."""
        return self.norm > 0 and self.gap > 1e-9 * self.norm

    def first(self, change: Tensor) -> float:
        """`D sigma[G]`."""
        return float((self.direction * change).sum())

    @abstractmethod
    def image(self, change: Tensor) -> Tensor:
        """What the second derivative needs of a change of the weights, a vector linear in it."""

    @abstractmethod
    def second(self, images: Tensor) -> Tensor:
        """`H(G_i, G_j)`, (k, k), from the images (k, d) of k changes."""

    @abstractmethod
    def crossing(self, change: Tensor) -> float:
        """How far a change goes towards another singular vector on top; above .5 the expansion is not valid for it."""

    def norm_after(self, change: Tensor) -> float | None:
        """The norm at the weights plus a change with a small `crossing`, where that is cheaper than to expand there; else None."""
        del change
        return None


class PairExpansion(Expansion):
    """A real operator with its top pair as a matrix: dense layers, and operators that are small enough to be unrolled.

    Attributes:
        form: the derivatives by images.
    """

    def __init__(
        self,
        weight: Tensor,
        apply: Apply | None = None,
        shape: tuple[int, ...] = (),
        start: PairExpansion | None = None,
    ) -> None:
        """Of a matrix, or with `apply` and the input's `shape` of the operator that they unroll to; `start` is an earlier one."""
        self._apply, self._shape = apply, shape
        self._matrix = weight if apply is None else unrolled(apply, weight, shape)
        near = start.form.warm if start is not None and isinstance(start.form, KrylovForm) else None
        self.form: GramForm | KrylovForm = best_form(self._matrix, near)
        self.norm, self.gap = self.form.norm, self.form.gap
        if apply is None:
            self.direction = torch.outer(self.form.left, self.form.right)
        else:
            self.direction = weight_gradient(apply, weight, self.form.left, self.form.right, shape)

    def image(self, change: Tensor) -> Tensor:
        """`(G v, G^T u)`."""
        form = self.form
        if self._apply is None:
            return torch.cat([change @ form.right, change.mT @ form.left])
        return torch.cat(pair_image(self._apply, change, form.left, form.right, self._shape))

    def first(self, change: Tensor) -> float:
        """See `Expansion`."""
        if self._apply is None:
            return float(self.form.left @ (change @ self.form.right))
        return super().first(change)

    def second(self, images: Tensor) -> Tensor:
        """See `Expansion`."""
        try:
            return self.form.matrix(*self._split(images))
        except NotFoundError:
            return GramForm(self._matrix).matrix(*self._split(images))

    def second_each(self, p: Tensor, q: Tensor) -> Tensor:
        """`H(G_i, G_i)`, (k,), of many changes from `G_i v` (k, m) and `G_i^T u` (k, n)."""
        form = self.form
        if isinstance(form, KrylovForm):
            if MANY * len(p) <= min(self._matrix.shape):
                try:
                    return form.second(p, q)
                except NotFoundError:
                    pass
            form = GramForm(self._matrix)  # H does not change when `u` and `v` change their signs
        return form.second(p, q)

    def norm_after(self, change: Tensor) -> float | None:
        """See `Expansion`."""
        if self._apply is not None or not isinstance(self.form, KrylovForm):
            return None
        try:
            return self.form.norm_after(change)
        except NotFoundError:
            return None

    def crossing(self, change: Tensor) -> float:
        """See `Expansion`."""
        return self.form.crossing_ratio(*self._split(self.image(change)))

    def _split(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = len(self.form.left)
        return images[..., :outputs], images[..., outputs:]


def unrolled(apply: Apply, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The matrix (outputs, inputs) of an operator on inputs of `shape`."""
    size = int(torch.Size(shape).numel())
    with torch.no_grad():
        return (
            apply(weight, torch.eye(size, dtype=weight.dtype).reshape(size, *shape)).reshape(size, -1).mT.contiguous()
        )


def weight_gradient(apply: Apply, weight: Tensor, left: Tensor, right: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`grad_W <left, K(W) right>`, of the shape of the weights."""
    with torch.inference_mode(False), torch.enable_grad():
        free = weight.detach().clone().requires_grad_()
        value = (apply(free, right.reshape(1, *shape)).reshape(-1) * left).sum()
        return torch.autograd.grad(value, free)[0]


def pair_image(
    apply: Apply, change: Tensor, left: Tensor, right: Tensor, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """`K(G) v` and `K(G)^T u`."""
    with torch.inference_mode(False), torch.enable_grad():
        point = right.detach().reshape(1, *shape).clone().requires_grad_()
        output = apply(change.detach(), point)
        (back,) = torch.autograd.grad(output, point, left.reshape(output.shape))
    return output.detach().reshape(-1), back.reshape(-1)


class FourierExpansion(Expansion):
    """A convolution with circular padding and stride 1 that keeps the size: one complex block for each frequency and group.

    A maximum away from the frequencies that are their own negatives comes as a conjugate pair of blocks. The real operator
    then has multiplicity two, but a change of the kernel moves both alike, so that the derivatives of one block are right.
    """

    def __init__(self, weight: Tensor, sizes: tuple[int, ...], dilation: tuple[int, ...], groups: int) -> None:
        """Of a kernel (outputs, inputs / groups, *kernel) on a grid of `sizes`."""
        self._kernel, self._groups = tuple(weight.shape[2:]), groups
        blocks = fourier_blocks(weight, sizes, dilation, groups)  # (*frequencies, groups, out, in)
        values = torch.linalg.svdvals(blocks)[..., 0]
        top = torch.unravel_index(values.argmax(), values.shape)
        frequency, group = tuple(int(i) for i in top[:-1]), int(top[-1])
        self._svd = thin_svd(blocks[*frequency, group])
        self._place = (frequency, group, self._phases(frequency, sizes, dilation))
        others = values.clone()
        others[..., group][_moving_together(frequency, sizes, dilation)] = -torch.inf
        self.norm = self._svd.norm
        rival = float(others.max())
        self.gap = min(self._svd.gap, self.norm - rival)
        self._rival: tuple[ThinSVD, tuple[tuple[int, ...], int, Tensor]] | None = None
        if rival > -torch.inf:
            place = torch.unravel_index(others.argmax(), others.shape)
            where, its_group = tuple(int(i) for i in place[:-1]), int(place[-1])
            self._rival = (
                thin_svd(blocks[*where, its_group]),
                (where, its_group, self._phases(where, sizes, dilation)),
            )
        self.direction = self._direction(weight)

    def _phases(self, frequency: tuple[int, ...], sizes: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
        """`exp(-i w t)` of every tap, of the shape of the kernel."""
        angle = torch.zeros(self._kernel, dtype=torch.float64)
        for axis, (k, n, d, taps) in enumerate(zip(frequency, sizes, dilation, self._kernel, strict=True)):
            turns = torch.arange(taps, dtype=torch.float64) * (d * k % n) * (2 * torch.pi / n)
            angle = angle + turns.reshape(-1, *(1,) * (len(sizes) - axis - 1))
        return torch.polar(torch.ones_like(angle), -angle)

    def _block(self, change: Tensor, place: tuple[tuple[int, ...], int, Tensor]) -> Tensor:
        _, group, phases = place
        rows = change.shape[0] // self._groups
        part = change[group * rows : (group + 1) * rows].to(phases.dtype)
        return (part * phases).flatten(2).sum(-1)

    def _direction(self, weight: Tensor) -> Tensor:
        """`Re(u^H G_hat v)` as a linear function of the kernel."""
        _, group, phases = self._place
        outer = torch.outer(self._svd.left[:, 0].conj(), self._svd.right[:, 0])
        rows = weight.shape[0] // self._groups
        direction = torch.zeros_like(weight)
        taps = (1,) * phases.ndim
        direction[group * rows : (group + 1) * rows] = (outer.reshape(*outer.shape, *taps) * phases).real
        return direction

    def image(self, change: Tensor) -> Tensor:
        """`(G_hat v, G_hat^H u)` of the top block, complex."""
        return torch.cat(self._svd.images(self._block(change, self._place)))

    def second(self, images: Tensor) -> Tensor:
        """See `Expansion`."""
        outputs = len(self._svd.left)
        p, q = images[:, :outputs], images[:, outputs:]
        return second_form(self._svd, (p[:, None], q[:, None]), (p[None], q[None]))

    def crossing(self, change: Tensor) -> float:
        """The larger of the turn within the block and of how far a rival block closes its distance."""
        inside = crossing_ratio(self._svd, *self._svd.images(self._block(change, self._place)))
        if self._rival is None:
            return inside
        svd, place = self._rival
        closes = float(first_form(svd, svd.images(self._block(change, place))[0])) - self.first(change)
        distance = self.norm - svd.norm
        return max(inside, closes / distance if distance > 0 else (torch.inf if closes > 0 else 0.0))


def fourier_blocks(weight: Tensor, sizes: tuple[int, ...], dilation: tuple[int, ...], groups: int) -> Tensor:
    """`sum_t W_t exp(-i w d t)` for half of the frequencies (rfft), (*frequencies, groups, outputs/groups, inputs/groups).

    Taps that lie beyond the grid wrap around, as circular padding does.
    """
    grid = weight.new_zeros(*weight.shape[:2], *sizes)
    kernel = weight.shape[2:]
    index = [torch.arange(t) * d % n for t, d, n in zip(kernel, dilation, sizes, strict=True)]
    flat = torch.zeros(kernel, dtype=torch.long)
    for axis, places in enumerate(index):
        flat = flat * sizes[axis] + places.reshape(-1, *(1,) * (len(sizes) - axis - 1))
    grid.flatten(2).index_add_(2, flat.reshape(-1), weight.flatten(2))
    axes = tuple(range(2, 2 + len(sizes)))
    spectrum: Tensor = torch.fft.rfftn(grid, dim=axes).movedim((0, 1), (-2, -1))
    return spectrum.reshape(*spectrum.shape[:-2], groups, -1, spectrum.shape[-1])


def _moving_together(frequency: tuple[int, ...], sizes: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """Which stored frequencies have the block of `frequency`, or its conjugate, whatever the kernel is.

    These are `-w`, and with a dilation d that shares a factor with the size all `w'` with `d w' = +-d w`.
    """
    same = negative = torch.ones((), dtype=torch.bool)
    last = len(sizes) - 1
    for axis, (k, n, d) in enumerate(zip(frequency, sizes, dilation, strict=True)):
        turns = (d * torch.arange(n // 2 + 1 if axis == last else n)) % n
        turns = turns.reshape(-1, *(1,) * (last - axis))
        same, negative = same & (turns == d * k % n), negative & (turns == -d * k % n)
    return same | negative


class ScaleExpansion(Expansion):
    """`max_c |gamma_c| scale_c`: a normalization with fixed statistics, a factor of its own.

    Attributes:
        channel: where the maximum is attained. Of several that tie, the one that the change to come makes largest.
    """

    def __init__(self, weight: Tensor, scale: Tensor, towards: Tensor | None = None) -> None:
        self._signed, self._scale = weight, scale
        sizes = weight.abs() * scale
        self.norm = float(sizes.max())
        tied = sizes >= self.norm * (1 - 1e-12)
        slopes = weight.sign() * scale
        ahead = torch.zeros_like(weight) if towards is None else slopes * towards
        self.channel = int(torch.where(tied, ahead, -torch.inf).argmax())
        others = sizes.clone()
        others[self.channel] = -torch.inf
        self.gap = self.norm - float(others.max()) if len(others) > 1 else self.norm
        self.direction = torch.zeros_like(weight)
        self.direction[self.channel] = slopes[self.channel]
        self.note = f"{int(tied.sum())} channels attain the maximum" if int(tied.sum()) > 1 else ""

    @property
    def simple(self) -> bool:
        """A positive norm: where channels tie, the one that wins after the step is followed."""
        return self.norm > 0

    def image(self, change: Tensor) -> Tensor:
        """Nothing is needed: within a channel the norm is linear."""
        return change.new_zeros(1)

    def second(self, images: Tensor) -> Tensor:
        """Zero."""
        return images @ images.mT

    def crossing(self, change: Tensor) -> float:
        """Above 1 exactly where another channel is on top after the change."""
        sizes, after = self._signed.abs() * self._scale, (self._signed + change).abs() * self._scale
        behind = self.norm - sizes
        closes = (after - sizes) - (after - sizes)[self.channel]
        rivals = (torch.arange(len(sizes)) != self.channel) & (closes > 0)
        if not rivals.any():
            return 0.0
        return float((closes[rivals] / behind[rivals]).max())
