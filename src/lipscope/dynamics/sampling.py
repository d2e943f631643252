"""The projections of many gradients from one pass over a batch: samples by the hook identity, micro-batches by themselves.

**Hook identity.** With `N = grad_W sigma`, the input `a_i` of a layer and the gradient `d_i` of the sample's loss by its
output, `<g_i, N> = <d_i, K(N) a_i>`, because the layer is linear in its weights; for a dense layer `(u.d_i)(v.a_i)`. Calls of
the same weights add up, so do positions of a sequence. For dense layers also the images of `g_i` are known,
`p_i = d_i (v.a_i)` and `q_i = a_i (u.d_i)`, and with them the curvature `H(g_i, g_i)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lipscope.claims.errors import UsageError
from lipscope.dynamics.expansions import PairExpansion, ScaleExpansion
from lipscope.dynamics.factors import Factor, list_factors
from lipscope.dynamics.operators import OPERATORS, Dense, Operator, plain_type
from lipscope.dynamics.projections import (
    Around,
    LayerProjections,
    Projections,
    Reduction,
    expand_factors,
    gradient_projections,
    pooled,
)  # fmt: skip
from lipscope.dynamics.shadow import as_inputs, call, shadow, untouched, unwrapped

Loss = Callable[[Tensor, Tensor], Tensor]


def micro_batch_projections(
    model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss, parts: int, factors: Sequence[Factor] | None = None
) -> Projections:
    """The batch in `parts` equal parts, one backward pass of a shadow each, in the mode that the model is in.

    Raises:
        UsageError: the batch cannot be cut into equal parts, or a loss that is neither mean nor sum.
    """
    if parts < 2 or len(inputs) % parts:
        raise UsageError(f"expected a number of parts (2 or more) that divides the batch of {len(inputs)}, got {parts}")
    run = _Run(model, inputs, targets, loss, factors)
    size = len(inputs) // parts
    units: list[Projections] = []
    total: dict[int, Tensor] = {}
    with untouched():
        for part in range(parts):
            gradients = run.gradients(slice(part * size, (part + 1) * size))
            for key, value in gradients.items():
                total[key] = (
                    total.get(key, torch.zeros((), dtype=torch.float64)) + value.to("cpu", torch.float64) / parts
                )
            units.append(gradient_projections(run.around, gradients, size, run.reduction))
    return pooled(units, gradient_projections(run.around, total, size, run.reduction))


def per_sample_projections(
    model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss, factors: Sequence[Factor] | None = None
) -> Projections:
    """Every sample as a unit, by the hook identity: one forward and one backward pass of a shadow.

    Samples must not see each other and the batch must be every tensor's first axis. Layers whose weights are also used outside
    of themselves get nan: there the identity does not see the whole gradient. The curvature of a sample is known for dense
    layers (and 0 for normalizations), nan for convolutions: use micro-batches for those.

    Raises:
        UsageError: a normalization in train mode couples the samples; a loss that is neither mean nor sum; one sample.
    """
    if len(inputs) < 2:
        raise UsageError(f"expected at least 2 samples, got {len(inputs)}")
    run = _Run(model, inputs, targets, loss, factors)
    run.refuse_coupling()
    hooks = _Hooks(run.around, run.twin, run.live, len(inputs))
    try:
        with untouched():
            gradients = run.gradients(slice(None))
    finally:
        hooks.remove()
    count = len(inputs)
    whole = gradient_projections(run.around, gradients, count, run.reduction)
    scale = (
        float(count) if run.reduction == "mean" else 1.0
    )  # the backward pass saw the mean: one sample's share is 1/B of it
    layers = tuple(hooks.layer(i, run.around[i], mean, scale) for i, mean in enumerate(whole.layers))
    return Projections(layers, count, 1, run.reduction)


class _Run:
    """A model's shadow with a batch, ready for backward passes that nobody else sees."""

    def __init__(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss, factors: Sequence[Factor] | None
    ) -> None:
        self.live, self.twin = unwrapped(model), shadow(model)
        (self.inputs,), self.targets, self.loss = as_inputs(inputs, self.live), targets.detach(), loss
        self.around = expand_factors(list_factors(model, inputs) if factors is None else factors)
        named = dict(self.live.named_parameters())
        self.leaves = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in named.items()}
        wanted = {id(one.operator.parameter) for one in self.around}
        self.chosen = {name: id(p) for name, p in named.items() if id(p) in wanted}
        with untouched(), torch.no_grad():
            outputs = call(self.twin, self.live, (self.inputs,), self.leaves)
        self.reduction = reduction_of(loss, outputs, self.targets)

    def gradients(self, window: slice) -> dict[int, Tensor]:
        """Of the loss of a part of the batch, by `id` of the live parameter. Draws from torch's generators."""
        outputs = call(self.twin, self.live, (self.inputs[window],), self.leaves)
        value = self.loss(outputs, self.targets[window])
        leaves = [self.leaves[name] for name in self.chosen]
        found = torch.autograd.grad(value, leaves, allow_unused=True) if leaves else ()
        return {key: g for key, g in zip(self.chosen.values(), found, strict=True) if g is not None}

    def refuse_coupling(self) -> None:
        coupled = [
            name
            for name, module in self.live.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_var is None)
        ]
        if coupled:
            raise UsageError(
                f"expected samples that do not see each other, got {', '.join(map(repr, coupled))} in train mode, which "
                "joins a batch: a single sample has no gradient. Use micro_batch_projections, or model.eval()"
            )


def reduction_of(loss: Loss, outputs: Tensor, targets: Tensor) -> Reduction:
    """Whether a loss is the mean or the sum of the losses of the samples, tried on two parts of a batch.

    Raises:
        UsageError: it is neither, or not a scalar.
    """
    half = (len(outputs) + 1) // 3 or 1
    with untouched(), torch.no_grad():
        pieces = [loss(outputs[w], targets[w]) for w in (slice(None), slice(None, half), slice(half, None))]
    if any(p.numel() != 1 for p in pieces):
        raise UsageError("expected a loss that is one number, got one for each sample; use its mean")
    whole, left, right = (float(p) for p in pieces)
    share = half / len(outputs)
    slack = 1e-4 * (abs(left) + abs(right)) + 1e-12
    if abs(whole - (share * left + (1 - share) * right)) <= slack:
        return "mean"
    if abs(whole - (left + right)) <= slack:
        return "sum"
    raise UsageError(
        "expected a loss that is the mean or the sum of the samples' losses, got one that is neither (class weights, ignored "
        "targets, or samples that see each other); use micro-batches of your own with gradient_projections"
    )


class _Hooks:
    """Collects the projections of all samples during one forward and backward pass."""

    def __init__(self, around: Sequence[Around], twin: nn.Module, live: nn.Module, count: int) -> None:
        self._count = count
        self._first = [torch.zeros(count, dtype=torch.float64) for _ in around]
        self._images: list[tuple[Tensor, Tensor] | None] = [None for _ in around]
        self._handles: list[RemovableHandle] = []
        self._strange: set[int] = set()
        for name, module in live.named_modules():
            kind = OPERATORS.get(plain_type(module))
            if kind is None or module._parameters.get("weight") is None:
                continue
            held = [i for i, one in enumerate(around) if one.operator.parameter is module._parameters["weight"]]
            if held:
                operator = kind(module, ())
                self._handles.append(
                    twin.get_submodule(name).register_forward_hook(
                        self._forward(operator, [(i, around[i]) for i in held])
                    )
                )

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _forward(self, operator: Operator, held: list[tuple[int, Around]]) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            entry = args[0].detach()
            if output.requires_grad:
                output.register_hook(lambda gradient: self._backward(operator, held, entry, gradient.detach()))  # type: ignore[no-untyped-call]

        return note

    def _backward(self, operator: Operator, held: list[tuple[int, Around]], a: Tensor, d: Tensor) -> None:
        with torch.no_grad():
            for index, one in held:
                if len(a) != self._count or len(d) != self._count:
                    self._strange.add(index)
                elif isinstance(operator, Dense) and isinstance(one.expansion, PairExpansion):
                    self._dense(index, one.expansion, a, d)
                else:
                    direction = one.expansion.direction.to(a).reshape(operator.weight().shape)
                    self._add(index, (d * operator.apply(direction, a)).flatten(1).sum(1))

    def _dense(self, index: int, expansion: PairExpansion, a: Tensor, d: Tensor) -> None:
        along, across = a @ expansion.form.right.to(a), d @ expansion.form.left.to(d)
        self._add(index, (along * across).reshape(self._count, -1).sum(1))
        p = (d * along.unsqueeze(-1)).reshape(self._count, -1, d.shape[-1]).sum(1).to("cpu", torch.float64)
        q = (a * across.unsqueeze(-1)).reshape(self._count, -1, a.shape[-1]).sum(1).to("cpu", torch.float64)
        old = self._images[index]
        self._images[index] = (p, q) if old is None else (old[0] + p, old[1] + q)

    def _add(self, index: int, values: Tensor) -> None:
        self._first[index] += values.to("cpu", torch.float64)

    def layer(self, index: int, one: Around, mean: LayerProjections, scale: float) -> LayerProjections:
        """The collected values as single samples' gradients; nan where they do not add up to the gradient of autograd."""
        first = scale * self._first[index]
        expected, nan = float(mean.first[0]), torch.full_like(first, math.nan)
        slack = 1e-3 * float(first.abs().mean()) + 1e-9 * (1 + abs(expected))
        if index in self._strange or not abs(float(first.mean()) - expected) <= slack:
            note = "the weights are used outside of the layer, or the batch is not the first axis: use micro-batches"
            return replace(mean, first=nan, curvature=nan, note=note)
        images = self._images[index]
        if images is not None and isinstance(one.expansion, PairExpansion):
            curvature = one.expansion.second_each(scale * images[0], scale * images[1])
        elif isinstance(one.expansion, ScaleExpansion):
            curvature = torch.zeros_like(first)
        else:
            return replace(
                mean, first=first, curvature=nan, note="a sample's curvature is not known: use micro-batches"
            )
        return replace(mean, first=first, curvature=curvature)
