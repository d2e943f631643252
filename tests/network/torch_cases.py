"""Helpers for tests of the torch importer: small modules, and a comparison that raises."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lipscope.network.graph import Graph
from lipscope.network.load.model import SourceModel
from lipscope.network.load.patterns import recognise
from lipscope.network.load.torch_export import from_module
from lipscope.rules.graph_value import evaluate_graph


class Calls(nn.Module):
    """A function as a module; further modules become its layers."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs) if self._modules else self.function(*inputs)


def calls(function: Callable[..., Tensor], **layers: nn.Module) -> nn.Module:
    """The module in eval mode and double precision."""
    return Calls(function, **layers).double().eval()


def shake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, and running statistics that are not those of a new layer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
                tensor.copy_(noise.abs() + 0.3 if "running_var" in name else 0.5 * noise)
    return module


def inputs_of(shapes: Sequence[Sequence[int]], seed: int, positive: bool) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random(s) + 0.1 if positive else 2 * rng.standard_normal(s) for s in shapes]


def compare(source: SourceModel, tolerance: float = 1e-12, positive: bool = False) -> Graph:
    """Raise unless the graph, as imported and with patterns recognised, equals the source on three inputs; the latter graph."""
    recognised = recognise(source.graph)
    for seed in range(3):
        arrays = inputs_of(source.run_shapes, seed, positive)
        wanted = np.concatenate([y.reshape(-1) for y in source.run(arrays)])
        assert np.isfinite(wanted).all(), "the test's input is outside the function's domain"
        flat = torch.from_numpy(np.concatenate([x.reshape(-1) for x in arrays])[None])
        for graph in (source.graph, recognised):
            found = evaluate_graph(graph, flat).reshape(-1).numpy()
            assert found.shape == wanted.shape
            assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max(), [n.kind for n in graph]
    return recognised


def agrees(module: nn.Module, shape: Sequence[int] | Sequence[Sequence[int]], positive: bool = False) -> list[str]:
    """Raise unless the module's graph equals it; the kinds of its nodes after the input."""
    return [node.kind for node in compare(from_module(module, shape), positive=positive)][1:]
