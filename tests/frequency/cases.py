"""Small networks for the tests of band gains, built as graphs by the loader, and slow oracles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import lipscope
from lipscope.frequency.bands import Bands
from lipscope.frequency.layout import Layout, find_layout
from lipscope.network.graph import Graph


def loaded(module: nn.Module, shape: tuple[int, ...]) -> tuple[Graph, Layout]:
    """A float64 module as a graph with the layout of its input."""
    graph = lipscope.load(module.double().eval(), input_shape=shape).graph
    return graph, find_layout(tuple(graph.input_shapes[0]))


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A module with weights drawn from a seed, the global random state untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double().eval()


def projector(bands: Bands, band: int) -> np.ndarray:
    """The matrix of P_b on the flattened grid, from the definition: a sum over frequencies, not a fast transform."""
    grid = bands.grid
    places = np.stack([p.ravel() for p in np.indices(grid)], axis=1)
    matrix = np.zeros((len(places), len(places)), dtype=complex)
    for frequency in np.argwhere(bands.masks[band].numpy()):
        wave = np.exp(2j * np.pi * (places @ (frequency / np.array(grid)))) / np.sqrt(len(places))
        matrix += np.outer(wave, wave.conj())
    assert np.abs(matrix.imag).max() < 1e-12
    return matrix.real


def matrix_of(graph_or_module: nn.Module, shape: tuple[int, ...]) -> np.ndarray:
    """The matrix of an affine module, column by column."""
    size = int(np.prod(shape))
    with torch.no_grad():
        origin = graph_or_module(torch.zeros(1, *shape, dtype=torch.float64))
        images = graph_or_module(torch.eye(size, dtype=torch.float64).reshape(size, *shape))
    return (images - origin).reshape(size, -1).T.numpy()


def spectral(matrix: np.ndarray) -> float:
    """The largest singular value."""
    return float(np.linalg.svd(matrix, compute_uv=False)[0])


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
