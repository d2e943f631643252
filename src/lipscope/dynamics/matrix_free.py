"""The expansion of an operator that is too large to write down: its top pairs by Lanczos, its Hessian by conjugate gradients.

`KrylovExpansion` is the quick one, on the shorter side of the operator. `MatrixFreeExpansion` stands in where that finds
nothing, as for a gap that is tiny or a norm that several vectors attain. With the dilation `A = [[0, K], [K^T, 0]]` and the image `b = (G v; G^T u)` of a change, `H(G, F) = b_F^T z` where
`(sigma I - A) z = b_G` on the complement of `(u; v)`, on which the matrix is positive definite. The few pairs that Lanczos
gives anyway are solved for exactly (their planes have the eigenvalues `+-sigma_i`), so that a small gap does not slow the rest.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from lipscope.dynamics.expansions import Apply, Expansion, pair_image, weight_gradient
from lipscope.dynamics.krylov import Action, KrylovForm, NotFoundError

PAIRS = 6
"""Singular pairs that Lanczos is asked for: the second for the gap, the rest to speed up the conjugate gradients."""
TOLERANCE = 1e-9
"""Relative residual of pairs and solutions; the norm's own error is of its square."""
ITERATIONS = 2000


def action_of(apply: Apply, weight: Tensor, shape: tuple[int, ...]) -> Action:
    """What `K(W)` on inputs of `shape` does to flat vectors; an adjoint is the derivative of `<y, K x>`, the same at every x."""
    weight, recorded = weight.detach(), dict[int, tuple[Tensor, Tensor]]()
    with torch.no_grad():
        outputs = apply(weight, weight.new_zeros(1, *shape)).numel()

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            return apply(weight, x.reshape(len(x), *shape)).reshape(len(x), -1)

    def adjoint(y: Tensor) -> Tensor:
        if len(y) not in recorded:
            with torch.inference_mode(False), torch.enable_grad():
                point = torch.zeros(len(y), *shape, dtype=weight.dtype, requires_grad=True)
                recorded[len(y)] = point, apply(weight, point)
        point, output = recorded[len(y)]
        (back,) = torch.autograd.grad(output, point, y.reshape(output.shape), retain_graph=True)
        return back.reshape(len(y), -1)

    return Action(outputs, math.prod(shape), forward, adjoint)


class KrylovExpansion(Expansion):
    """A linear operator given by its application alone, with a gap that a Krylov space tells.

    Attributes:
        form: the derivatives by images.
    """

    def __init__(
        self, weight: Tensor, apply: Apply, shape: tuple[int, ...], start: KrylovExpansion | None = None
    ) -> None:
        """Of the operator on inputs of `shape`, in float64; `start` is an earlier one.

        Raises:
            NotFoundError: use `MatrixFreeExpansion`.
        """
        self._apply, self._shape, self._weight = apply, shape, weight.detach()
        self.form: KrylovForm = KrylovForm(action_of(apply, weight, shape), None if start is None else start.form.warm)
        self.norm, self.gap = self.form.norm, self.form.gap
        self.direction = weight_gradient(apply, weight, self.form.left, self.form.right, shape)

    def image(self, change: Tensor) -> Tensor:
        """`(G v, G^T u)`, flat."""
        return torch.cat(pair_image(self._apply, change, self.form.left, self.form.right, self._shape))

    def second(self, images: Tensor) -> Tensor:
        """See `Expansion`."""
        outputs = len(self.form.left)
        try:
            return self.form.matrix(images[:, :outputs], images[:, outputs:])
        except NotFoundError:
            slow = MatrixFreeExpansion(self._weight, self._apply, self._shape, self.form.right)
            # H does not change when `u` and `v` change their signs together, but images do.
            return slow.second(images if float(slow.right @ self.form.right) > 0 else -images)

    def crossing(self, change: Tensor) -> float:
        """See `Expansion`."""
        image, outputs = self.image(change), len(self.form.left)
        return self.form.crossing_ratio(image[:outputs], image[outputs:])

    def norm_after(self, change: Tensor) -> float | None:
        """See `Expansion`."""
        try:
            return self.form.norm_after(action_of(self._apply, change, self._shape))
        except NotFoundError:
            return None


class MatrixFreeExpansion(Expansion):
    """A linear operator given by its application alone.

    Attributes:
        right: `v`, a start for the next expansion of a similar operator.
    """

    def __init__(self, weight: Tensor, apply: Apply, shape: tuple[int, ...], start: Tensor | None = None) -> None:
        """Of the operator on inputs of `shape`, in float64.

        Args:
            weight: the weights.
            apply: `K(W) x`.
            shape: of one input.
            start: a guess of the right singular vector, flat; without one a fixed vector is used.
        """
        self._apply, self._shape = apply, shape
        self._bind(weight)
        self.norm, self.gap, self.note = math.nan, 0.0, ""
        left, values, right = self._pairs(start)
        self.right = right[:, 0]
        self._left_columns, self._values, self._right_columns = left, values, right
        self.norm = float(values[0])
        self.gap = float(values[0] - values[1]) if len(values) > 1 else self.norm
        self.direction = weight_gradient(apply, weight, left[:, 0], right[:, 0], shape)

    def _bind(self, weight: Tensor) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            self._weight = weight.detach()
            self._point = torch.zeros(1, *self._shape, dtype=weight.dtype, requires_grad=True)
            self._output = self._apply(self._weight, self._point)
        self._inputs, self._outputs = self._point.numel(), self._output.numel()

    def forward(self, x: Tensor) -> Tensor:
        """`K x` of a flat vector."""
        with torch.no_grad():
            return self._apply(self._weight, x.reshape(1, *self._shape)).reshape(-1)

    def adjoint(self, y: Tensor) -> Tensor:
        """`K^T y` of a flat vector: the derivative of `<y, K x>`, the same at every x."""
        (back,) = torch.autograd.grad(self._output, self._point, y.reshape(self._output.shape), retain_graph=True)
        return back.reshape(-1)

    def _pairs(self, start: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Singular vectors and values, falling, those far below the first left out."""
        size = self._inputs

        def gram(x: np.ndarray) -> np.ndarray:
            return self.adjoint(self.forward(torch.from_numpy(x.reshape(-1).copy()))).numpy()

        if start is None or not bool(torch.isfinite(start).all()) or float(start.norm()) == 0:
            # Fixed, and without symmetry, so that it is not orthogonal to a symmetric top vector.
            start = torch.cos(torch.arange(size, dtype=torch.float64) ** 1.5) + 0.1
        try:
            _, vectors = eigsh(
                LinearOperator((size, size), matvec=gram, dtype=np.float64),
                k=min(PAIRS, size - 1), v0=start.numpy(), tol=TOLERANCE, maxiter=ITERATIONS,
            )  # fmt: skip
        except ArpackNoConvergence as stopped:
            self.note = "the singular vectors did not converge"
            vectors = stopped.eigenvectors if stopped.eigenvectors.size else start.numpy()[:, None]
        right = torch.linalg.qr(torch.from_numpy(np.ascontiguousarray(vectors)))[0]
        return self._ritz(right)

    def _ritz(self, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs within the span of some right vectors; left vectors orthonormal to rounding."""
        images = torch.stack([self.forward(column) for column in right.mT], 1)
        left, values, turn = torch.linalg.svd(images, full_matrices=False)
        kept = max(int((values > 1e-3 * values[0]).sum()), min(2, len(values)))
        return left[:, :kept], values[:kept], (right @ turn.mT)[:, :kept]

    @property
    def simple(self) -> bool:
        """As for every expansion, and only where the pairs converged."""
        return not self.note and super().simple

    def image(self, change: Tensor) -> Tensor:
        """`(G v, G^T u)`, flat."""
        return torch.cat(
            pair_image(self._apply, change, self._left_columns[:, 0], self._right_columns[:, 0], self._shape)
        )

    def second(self, images: Tensor) -> Tensor:
        """See `Expansion`; one solve for each image that is not 0, nan where it did not converge."""
        solutions = torch.stack([self._solve(image) for image in images])
        return solutions @ images.mT

    def crossing(self, change: Tensor) -> float:
        """See `Expansion`."""
        if len(self._values) < 2:
            return 0.0
        image = self.image(change)
        p, q = image[: self._outputs], image[self._outputs :]
        turn = abs(float(p @ self._left_columns[:, 1] + q @ self._right_columns[:, 1]))
        return turn / (2 * self.gap) if self.gap > 0 else (0.0 if turn == 0 else math.inf)

    def _across(self, b: Tensor) -> Tensor:
        """The part across all known singular vectors."""
        p, q = b[: self._outputs], b[self._outputs :]
        left, right = self._left_columns, self._right_columns
        return torch.cat([p - left @ (left.mT @ p), q - right @ (right.mT @ q)])

    def _within(self, b: Tensor) -> Tensor:
        """The solution in the planes of the known pairs, the top vector itself left out."""
        p, q = b[: self._outputs], b[self._outputs :]
        a, c = self._left_columns.mT @ p, self._right_columns.mT @ q
        plus, minus = (a + c) / 2, (a - c) / 2
        away = self._values[0] - self._values
        plus = torch.where(torch.arange(len(away)) == 0, 0.0, plus / away)
        minus = minus / (self._values[0] + self._values)
        return torch.cat([self._left_columns @ (plus + minus), self._right_columns @ (plus - minus)])

    def _solve(self, b: Tensor) -> Tensor:
        """`z` of the heading; conjugate gradients on what is across the known pairs, projected again at every step."""
        rest = self._across(b)
        scale = float(b.norm())
        if scale == 0:
            return torch.zeros_like(b)
        z, r = torch.zeros_like(rest), rest
        d, size = r, float(r @ r)
        for _ in range(ITERATIONS):
            if size <= (TOLERANCE * scale) ** 2:
                return z + self._within(b)
            moved = self._across(self._shifted(d))
            step = size / float(d @ moved)
            z, r = z + step * d, r - step * moved
            size, before = float(r @ r), size
            d = r + (size / before) * d
        return torch.full_like(b, math.nan)

    def _shifted(self, d: Tensor) -> Tensor:
        p, q = d[: self._outputs], d[self._outputs :]
        return self._values[0] * d - torch.cat([self.forward(q), self.adjoint(p)])
