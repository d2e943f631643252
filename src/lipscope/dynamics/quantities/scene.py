"""What the observer's own quantities may look at beside a `Moment`: the twin, its layers, its graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lipscope.claims.errors import LipscopeError, ModelError, UnsupportedError
from lipscope.claims.quantity import Moment, Reading
from lipscope.dynamics.construction import Settings
from lipscope.dynamics.layers import WatchedLayer
from lipscope.dynamics.template import Template, disagreement
from lipscope.dynamics.view import View, isolated
from lipscope.network.graph import Graph

POINTS = 64
"""Of the probe, at most so many points have their Jacobians computed."""


WHOLE = (
    "the inputs are {dtype}, whole numbers, by which nothing can be differentiated: weights and losses are followed, the "
    "Lipschitz constant by the inputs is not; pass the part of the model that takes the embedded inputs to have it"
)
"""Why nothing is read of the constant of a model that takes tokens."""


@dataclass(eq=False)
class Subject:
    """What is observed: the twin of the model, the probe's layers, and, once it is asked for, the graph.

    Attributes:
        view: the twin.
        inputs: the probe.
        layers: dense layers and convolutions in the order of the forward pass.
        notes: what a reader must know about them.
        joined: why the model is no function of single examples, in words; empty if it is one.
        made: whether the graph was tried.
        missing: why there is no graph, in words; empty if there is one.
        unknown: the operations without a rule, if that is why; then the constant counts as infinite.
    """

    view: View
    inputs: Tensor
    layers: list[WatchedLayer]
    notes: list[str] = field(default_factory=list)
    joined: str = ""
    made: bool = False
    missing: str = ""
    unknown: bool = False
    _template: Template | None = None
    _settings: Settings = field(default_factory=list)
    _filled: tuple[int, Graph] | None = None

    def prepare(self) -> None:
        """Export the model, once and again when its plain attributes have changed; `missing` tells why it cannot be done."""
        if self.made and self._settings == self.view.settings:
            return
        self.made, self.missing, self.unknown = True, "", False
        self._template, self._settings = None, self.view.settings
        if not self.inputs.is_floating_point():
            self.missing = WHOLE.format(dtype=dtype_of(self.inputs))
            return
        if self.joined:
            self.missing = self.joined
            return
        try:
            with isolated(self.view.device):
                self._template = Template(self.view.model, tuple(self.inputs.shape[1:]))
        except UnsupportedError as error:
            self.unknown = True
            self.missing = "; ".join(f"{o.operator} at {o.layer!r} is not understood" for o in error.operations)
        except LipscopeError as error:
            self.missing = str(error).splitlines()[0]
        except Exception as error:  # noqa: BLE001 - export runs the user's code and torch's tracers
            self.missing = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

    def graph(self, step: int) -> Graph:
        """The graph with the weights of this moment, compared with the twin on a few points of the probe.

        Raises:
            ModelError: there is none, its weights are not finite, or it does not compute what the twin computes.
        """
        self.prepare()
        if self._template is None:
            raise ModelError(self.missing)
        if self._filled is not None and self._filled[0] == step:
            return self._filled[1]
        double = self.view.double()
        graph = self._template.filled(double)
        apart = disagreement(graph, double, self.inputs[:4])
        if not apart < 1e-8:
            raise ModelError(
                f"the graph made at the start is {apart:.1e} away from the model by now; no bound is given"
            )
        self._filled = step, graph
        return graph

    def forget(self) -> None:
        """Drop the graph of the last moment."""
        self._filled = None


@dataclass(frozen=True)
class Scene(Moment):
    """A moment, and what the observer's own quantities need beyond it.

    Attributes:
        subject: the twin (whose parameters share memory with the model's), its layers and its graph.
        scale: of the probe's inputs, in words.
    """

    subject: Subject
    scale: str

    def about(
        self, samples: int, dtype: str = "", more: str = "", points: str = "probe points", scale: str = ""
    ) -> str:
        """The note of a value that comes from data: mode, precision, number of points and scale of the inputs."""
        text = f"eval mode, {dtype or dtype_of(self.inputs)}, {samples} {points}, {scale or self.scale}"
        return f"{text}; {more}" if more else text

    def precise(self, inputs: Tensor) -> tuple[nn.Module, Tensor]:
        """The model and these inputs; in float64 where the inputs are in half precision, which is too coarse to measure."""
        if inputs.is_floating_point() and inputs.dtype not in (torch.float32, torch.float64):
            return self.subject.view.double(), inputs.double()
        return self.model, inputs


def dtype_of(inputs: Tensor) -> str:
    """The name of its precision."""
    return str(inputs.dtype).removeprefix("torch.")


def scale_of(inputs: Tensor) -> str:
    """The range and the mean of inputs, in words."""
    exact = inputs.double()
    return f"inputs in [{exact.min():.4g}, {exact.max():.4g}] with mean {exact.mean():.4g}"


@runtime_checkable
class Watch(Protocol):
    """A quantity of the observer's own."""

    name: str

    def read(self, scene: Scene) -> Iterable[Reading]:
        """The readings of this moment."""
        ...


@runtime_checkable
class StepWatch(Watch, Protocol):
    """A quantity that compares the weights before and after an optimizer step."""

    def before(self, closure: bool) -> None:
        """Right before the step; `closure` says that the optimizer computes its gradients itself."""
        ...
