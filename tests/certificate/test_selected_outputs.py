"""One entry of several concatenated outputs: the other heads do not stand in the way, and the checker agrees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.exact import jacobian, matrix_norm
from harness.expect import expect_close, expect_upper
from lipscope import bound, load


class Heads(nn.Module):
    """Three heads: linear, the index of its largest entry, and an exponential."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y = self.body(x)
        return y, y.argmax(1).to(x.dtype), 2 * y, torch.exp(y)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(4)
    return load(Heads().double().eval(), input_shape=(3,))


@pytest.mark.parametrize("output", ["0", "1", "3", "4", "1-0", "4-0", "0-4", "3-1"])
def test_heads_without_jumps_are_bounded(model, output: str) -> None:
    weight = next(n for n in model.graph if n.kind == "Dense").weight
    rows = {0: weight[0], 1: weight[1], 3: 2 * weight[0], 4: 2 * weight[1]}
    first, *second = (rows[int(i)] for i in output.split("-"))
    truth = matrix_norm((first - second[0] if second else first)[None], "l2")
    result = bound(model, "l2", output=output, budget=2)
    assert result.upper.status == "certified", result.upper
    expect_upper(result.upper.value, truth * (1 - 1e-14), output)
    if not second or set(output.split("-")) in ({"0", "1"}, {"3", "4"}):  # within one head the bound is the row's norm
        expect_close(result.upper.value, truth, 1e-9, output)
    assert result.lower_status == "certified"


@pytest.mark.parametrize("output", ["all", "2", "5", "2-0"])
def test_the_other_heads_are_named(model, output: str) -> None:
    result = bound(model, "l2", output=output, budget=2)
    assert result.upper.value is None
    assert result.upper.status in ("no-bound", "unbounded")
    assert result.upper.layer
    if output == "2":
        assert result.upper.status == "unbounded"
        assert result.verdict is not None and result.verdict["accepted"]


def test_the_oracle_sees_a_difference() -> None:
    """The heads do differ: a selection that ignored its index would fail above."""
    torch.manual_seed(4)
    heads = Heads().double().eval()
    x = torch.zeros(3, dtype=torch.float64)
    norms = [matrix_norm(jacobian(lambda p, k=k: heads(p)[0][:, k : k + 1], (3,), x), "l2") for k in range(2)]
    assert abs(norms[0] - norms[1]) > 1e-3
