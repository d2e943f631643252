"""What a heat map shows of a model: wrong answers, or how far a layer's output moves."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor, nn

from lipscope.claims.errors import UsageError
from lipscope.frequency.evaluation import Model, check_labels, check_scores


class WrongAnswers:
    """1 for each image whose largest score is not its label's, else 0."""

    quantity = "error"

    def __init__(self, model: Model, labels: Tensor) -> None:
        check_labels(labels, len(labels))
        self.model, self.labels = model, labels

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def reference(self, x: Tensor, batch_size: int) -> float:
        """The error rate of images as they are."""
        scores = [self.model(part) for part in torch.split(x, batch_size)]
        for part in scores:
            check_scores(part, self.labels)
        return float(self.values(torch.cat(scores).argmax(dim=1)).mean())

    def __call__(self, images: Tensor, part: slice) -> Tensor:
        """The answers (waves x images,) to perturbed images: the part of all images, for one wave after the other."""
        # Not the scores: they may be a view of the images, which are overwritten.
        return self.model(images).argmax(dim=1)

    def values(self, seen: Tensor) -> Tensor:
        """Whether answers are wrong, (waves, images), from all answers."""
        return (seen != self.labels).to("cpu", torch.float64)


class LayerChange:
    """The Euclidean length of the change of a layer's output. The outputs of clean images are kept in memory."""

    def __init__(self, model: Model, layer: str) -> None:
        self.model, self.layer = model, layer
        self.quantity = f"change of {layer or 'output'}"
        self._module = _submodule(model, layer) if layer else None
        self._seen: list[object] = []
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        self._clean = torch.empty(0)

    def __enter__(self) -> None:
        if self._module is not None:
            self._hook = self._module.register_forward_hook(lambda _module, _inputs, output: self._seen.append(output))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._seen.clear()

    def reference(self, x: Tensor, batch_size: int) -> float:
        """0: clean images do not change. Their outputs are kept from here on."""
        self._clean = torch.cat([self._output(part) for part in torch.split(x, batch_size)])
        return 0.0

    def __call__(self, images: Tensor, part: slice) -> Tensor:
        """Values (waves x images,) of perturbed images: the part of all images, for one wave after the other."""
        clean = self._clean[part].flatten(1)
        change = self._output(images).reshape(-1, *clean.shape) - clean
        lengths: Tensor = torch.linalg.vector_norm(change, dim=2, dtype=torch.float64)
        return lengths.flatten()

    def values(self, seen: Tensor) -> Tensor:
        """The same lengths, (waves, images)."""
        return seen.cpu()

    def _output(self, images: Tensor) -> Tensor:
        self._seen.clear()
        output: object = self.model(images)
        if self._module is not None:
            if len(self._seen) != 1:
                raise UsageError(
                    f"expected layer {self.layer!r} to run once in a forward pass, it ran {len(self._seen)} times; "
                    "name another layer"
                )
            output = self._seen.pop()
        if not isinstance(output, Tensor) or output.ndim < 1 or len(output) != len(images):
            raise UsageError(
                f"expected layer {self.layer or 'output'!r} to return a tensor with one entry for each image, got "
                f"{list(output.shape) if isinstance(output, Tensor) else type(output).__name__}; name another layer"
            )
        return output.detach()


def _submodule(model: Model, layer: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise UsageError(f"expected an nn.Module to look into its layer {layer!r}, got {type(model).__name__}")
    modules = dict(model.named_modules())
    if layer not in modules:
        known = [name for name in modules if name]
        raise UsageError(f"expected the name of a layer out of {', '.join(known[:20]) or 'none'}, got {layer!r}")
    module: nn.Module = modules[layer]
    return module
