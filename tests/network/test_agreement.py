"""The agreement check: it has to turn red for a wrong graph, and for models that are no function of one example."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lipscope
from lipscope.claims.errors import ModelError
from lipscope.network.graph import Graph
from lipscope.network.load.agreement import check_agreement
from lipscope.network.load.model import SourceModel
from lipscope.network.load.torch_export import from_exported, from_module, quiet
from network.torch_cases import calls, shake


def single(module: nn.Module, *shape: int) -> SourceModel:
    """The module as a float32 program."""
    with quiet():
        return from_exported(torch.export.export(module.float().eval(), (torch.zeros(1, *shape),)))


def changed(graph: Graph, name: str, **fields: object) -> Graph:
    """The graph with other fields in the node of that name."""
    return replace(graph, nodes=tuple(replace(v, **fields) if v.name == name else v for v in graph.nodes))


def network() -> nn.Sequential:
    return shake(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))).double().eval()


def test_pairs_are_the_sources_own_values():
    model = network()
    source = from_module(model, (5,))
    pairs = check_agreement(source, source.graph)
    assert len(pairs) == 8
    for x, y in pairs:
        assert x.dtype == y.dtype == np.float64
        assert np.array_equal(model(torch.from_numpy(x)[None]).detach().numpy()[0], y)
    scales = sorted(np.abs(x).max() for x, _ in pairs)
    assert scales[0] == 0 and scales[1] < 0.01 and scales[-2] > 5 and scales[-1] > 50


@pytest.mark.parametrize("size", [1e-8, 1e-3])
def test_a_wrong_weight_is_refused_in_double_precision(size):
    source = from_module(network(), (5,))
    weight = source.graph.nodes[3].weight.copy()
    weight[1, 2] += size
    with pytest.raises(ModelError, match="at output 1"):
        check_agreement(source, changed(source.graph, "2", weight=weight))


@pytest.mark.parametrize("size", [1e-4, 1e-2])
def test_a_wrong_weight_is_refused_in_single_precision(size):
    source = single(network(), 5)
    check_agreement(source, source.graph)
    weight = source.graph.nodes[3].weight.copy()
    weight[1, 2] += size
    with pytest.raises(ModelError, match=r"Nothing is claimed"):
        check_agreement(source, changed(source.graph, "2", weight=weight))


def test_a_mistake_that_only_large_inputs_show_is_found():
    source = from_module(calls(lambda m, x: m.a(x), a=nn.Hardtanh(-40, 40)), (4,))
    graph = source.graph
    (clip,) = [node for node in graph if node.kind == "Elementwise"]
    wrong = changed(graph, clip.name, arguments=(("high", 1e3), ("low", -1e3)))
    with pytest.raises(ModelError, match=r"large \(100\)"):
        check_agreement(source, wrong)


def test_a_mistake_that_only_zero_shows_is_found():
    source = from_module(calls(lambda x: x.abs()), (4,))
    shifted = SourceModel(source.graph, lambda xs: [np.abs(x) + (x == 0) for x in xs], source.run_shapes, "float64")
    with pytest.raises(ModelError, match="zero"):
        check_agreement(shifted, source.graph)


# ------------------------------------------------------------------------------------------- ill-conditioned sources


def cancelling(offset: float) -> nn.Module:
    """1000 x, with single-precision errors of the size of the offset's last place."""
    return calls(lambda x: (x * 1000 + offset) - offset)


def test_errors_that_the_sources_roundings_explain_are_accepted():
    source = single(cancelling(3e5), 4)
    x = 1.7 * np.random.default_rng(0).standard_normal((1, 4)).astype(np.float32).astype(np.float64)
    error = np.abs(source.run([x])[0] - 1000 * x).max() / np.abs(1000 * x).max()
    assert error > 1e-6
    pairs = check_agreement(source, source.graph)
    assert 4 <= len(pairs)


def test_samples_that_roundings_hide_do_not_count():
    source = single(cancelling(1e7), 4)
    pairs = check_agreement(source, source.graph)
    assert 2 <= len(pairs) < 8
    assert not any(0 < np.abs(x).max() < 0.01 for x, _ in pairs)


def test_roundings_do_not_excuse_a_well_conditioned_graph():
    source = single(cancelling(10.0), 4)
    wrong = SourceModel(source.graph, lambda xs: [source.run(xs)[0] * (1 + 1e-4)], source.run_shapes, "float32")
    with pytest.raises(ModelError, match="difference"):
        check_agreement(wrong, source.graph)


def test_softplus_agrees_with_torch_beyond_its_threshold():
    source = from_module(calls(lambda m, x: m.a(x) - x, a=nn.Softplus()), (40,))
    assert len(check_agreement(source, source.graph)) == 8


# ------------------------------------------------------------------------------------------------- values that are not finite


def test_samples_outside_the_domain_are_left_out():
    source = from_module(calls(lambda x: x.log().sum(1, keepdim=True)), (4,))
    pairs = check_agreement(source, source.graph)
    assert len(pairs) == 2
    assert all((x > 0).all() for x, _ in pairs)


def test_overflow_is_left_out():
    source = from_module(calls(lambda x: (x * x).exp()), (40,))
    assert 2 <= len(check_agreement(source, source.graph)) < 8


def test_nothing_finite_is_refused():
    source = from_module(calls(lambda x: (-1 - x.abs()).log()), (4,))
    with pytest.raises(ModelError, match="finite outputs"):
        check_agreement(source, source.graph)


def test_infinite_on_one_side_only_is_refused():
    source = from_module(calls(lambda x: x.sin()), (4,))
    broken = SourceModel(source.graph, lambda xs: [np.full_like(xs[0], np.nan)], source.run_shapes, "float64")
    with pytest.raises(ModelError, match="not finite where the graph is"):
        check_agreement(broken, source.graph)


# --------------------------------------------------------------------------------------------- models that are no function


def test_randomness_is_refused():
    graph = from_module(calls(lambda x: x * 2), (4,)).graph
    rng = np.random.default_rng(0)
    noisy = SourceModel(graph, lambda xs: [2 * xs[0] + 1e-12 * rng.standard_normal(xs[0].shape)], ((1, 4),), "float64")
    with pytest.raises(ModelError, match="same output twice"):
        check_agreement(noisy, graph)


def test_a_state_that_grows_slowly_is_refused():
    class Drifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("drift", torch.zeros(()))

        def forward(self, x):
            self.drift += 1e-13
            return x * (1 + self.drift)

    source = from_module(Drifting().double().eval(), (4,))
    with pytest.raises(ModelError, match="same output twice"):
        check_agreement(source, source.graph)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x - 0.5 * x.mean(0, keepdim=True),
        lambda x: F.batch_norm(x, None, None, training=True) if len(x) > 1 else x,
        lambda x: x.sum().reshape(1),
        lambda x: torch.cat([x, x.sin()], 0),
        lambda x: x.flip(0),
    ],
)
def test_models_that_mix_the_batch_are_refused(function):
    source = from_module(calls(function), (4,))
    with pytest.raises(ModelError, match="batch"):
        check_agreement(source, source.graph)


def test_models_that_take_one_example_only_are_accepted():
    source = from_module(calls(lambda x: x.reshape(1, 2, 2).sum(1)), (4,))
    assert len(check_agreement(source, source.graph)) == 8


def test_a_source_that_fails_is_an_error_of_the_model():
    graph = from_module(calls(lambda x: x * 2), (4,)).graph

    def run(_):
        raise RuntimeError("broken kernel")

    with pytest.raises(ModelError, match="broken kernel"):
        check_agreement(SourceModel(graph, run, ((1, 4),), "float64"), graph)


def test_a_jump_at_which_roundings_decide_does_not_count():
    source = from_module(calls(lambda m, x: torch.round(m.a(x)), a=nn.Linear(4, 4)), (4,))
    assert len(check_agreement(source, source.graph)) >= 2


def test_an_output_that_is_zero_by_cancellation_mixes_nothing() -> None:
    """Rounding of 3 relu(x + 0.5) - relu(3 x + 1.5) differs between one example and two; the value is 0."""

    class Cancelling(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * torch.relu(x + 0.5) - torch.relu(3 * x + 1.5)

    assert lipscope.load(Cancelling().eval(), input_shape=(7,)).graph.output_size == 7
