"""Gains and joins: never below a Jacobian's norm, attained where the derivation says so, refused in words elsewhere."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lipscope.claims.norms import NORMS, Norm
from lipscope.network.nodes import Concat, LayerNorm, LogSoftmax, MaxPool, Node, RMSNorm, Softmax
from lipscope.rules import Interval, NoRule, evaluate, gain, join
from rules.rule_cases import CASES, pool
from rules.test_boxes import points_in

norms = pytest.mark.parametrize("norm", NORMS)
ORDER = {"l1": 1, "l2": 2, "linf": math.inf}


def jacobian_norm(node: Node, point: Tensor, norm: Norm) -> float:
    matrix = torch.autograd.functional.jacobian(lambda x: evaluate(node, x.unsqueeze(0)).reshape(-1), point)
    return float(torch.linalg.matrix_norm(matrix.reshape(matrix.shape[0], -1), ORDER[norm]))


def size(x: Tensor, norm: Norm) -> Tensor:
    return torch.linalg.vector_norm(x.reshape(x.shape[0], -1), ORDER[norm], dim=1)


def everywhere(shape: tuple[int, ...]) -> Interval:
    ends = torch.full(shape, math.inf, dtype=torch.float64)
    return Interval(-ends, ends)


def assert_not_below(value: float, reached: float) -> None:
    """1e-12 is the rounding of the Jacobian and its singular values, not a tolerance of the rule."""
    assert value >= reached * (1 - 1e-12), f"{value} < {reached}"


GAINS = [n for n, c in CASES.items() if c.node.kind in
         {"MaxPool", "ReduceMax", "Sort", "Softmax", "LogSoftmax", "LogSumExp", "LayerNorm", "RMSNorm", "ReduceL2"}]  # fmt: skip


@norms
@pytest.mark.parametrize("name", GAINS)
def test_gain_is_at_least_every_jacobian(name: str, norm: Norm) -> None:
    case = CASES[name]
    value = gain(case.node, norm, everywhere(case.shapes[0]))
    for scale in (1e-4, 1e-2, 1.0, 30.0):
        for x in case.inputs(3, 4, scale)[0]:
            assert_not_below(value, jacobian_norm(case.node, x, norm))


@norms
@pytest.mark.parametrize("name", GAINS)
def test_gain_is_at_least_every_quotient(name: str, norm: Norm) -> None:
    case = CASES[name]
    value = gain(case.node, norm, everywhere(case.shapes[0]))
    x, step = case.inputs(4, 500)[0], case.inputs(5, 500)[0]
    y = x + step * torch.logspace(-3, 1, 500, dtype=torch.float64).reshape(-1, *(1,) * (x.ndim - 1))
    reached = size(evaluate(case.node, x) - evaluate(case.node, y), norm) / size(x - y, norm)
    assert_not_below(value, float(reached.max()))


def test_the_check_can_fail() -> None:
    with pytest.raises(AssertionError):
        assert_not_below(1.0, 1.0000001)
    assert jacobian_norm(CASES["Softmax"].node, torch.zeros(2, 4, 3, dtype=torch.float64), "l2") > 0.24


@pytest.mark.parametrize(("kernel", "stride", "dilation", "shared"), [
    (2, 2, 1, 1), (3, 2, 1, 2), (3, 1, 1, 3), (5, 2, 1, 3), (3, 2, 2, 3), (3, 5, 1, 1), (2, 1, 3, 2),
])  # fmt: skip
def test_max_pool_counts_windows_and_attains(kernel: int, stride: int, dilation: int, shared: int) -> None:
    n = 15
    rows = pool(n, kernel, stride, 0, dilation)
    node = MaxPool(inputs=(0,), shape=(1, 1, len(rows), len(rows)), windows=(rows, rows))
    assert [gain(node, norm, None) for norm in ("l1", "l2", "linf")] == [shared**2, shared, 1]
    held = [sum(i in range(*row) for row in rows.tolist()) for i in range(n)]
    assert max(held) == shared
    peak = torch.zeros(1, 1, n, n, dtype=torch.float64)
    peak[0, 0, held.index(shared), held.index(shared)] = 1
    assert jacobian_norm(node, peak, "l2") == pytest.approx(shared, rel=1e-14)
    assert jacobian_norm(node, peak, "l1") == shared**2


def test_unequal_windows_are_counted_by_axis() -> None:
    node = MaxPool(inputs=(0,), shape=(1, 1, 5, 3), windows=(pool(7, 3, 1), pool(6, 2, 2)))
    assert gain(node, "l1", None) == 3


def test_closed_forms_are_attained() -> None:
    two = Softmax(inputs=(0,), shape=(2,), axis=0)
    zero = torch.zeros(2, dtype=torch.float64)
    for norm in NORMS:
        assert gain(two, norm, None) == 0.5
        assert jacobian_norm(two, zero, norm) == pytest.approx(0.5, rel=1e-14)
    log = LogSoftmax(inputs=(0,), shape=(5,), axis=0)
    one = 40.0 * torch.eye(5, dtype=torch.float64)[0]
    for norm in NORMS:
        reached = max(jacobian_norm(log, x, norm) for x in (one, -one))
        assert gain(log, norm, None) == pytest.approx(reached, rel=1e-12)
    flat = torch.zeros(6, dtype=torch.float64)
    layer, rms = (kind(inputs=(0,), shape=(6,), axes=(0,), eps=1e-5) for kind in (LayerNorm, RMSNorm))
    assert gain(layer, "l2", None) == pytest.approx(316.22776601683796, rel=1e-12)
    assert jacobian_norm(layer, flat, "l2") == pytest.approx(gain(layer, "l2", None), rel=1e-9)
    assert jacobian_norm(rms, flat, "l2") == pytest.approx(gain(rms, "l2", None), rel=1e-9)
    n2 = replace(CASES["ReduceL2"].node, shape=(), axes=(0,))
    ones = torch.ones(5, dtype=torch.float64)
    assert gain(n2, "linf", everywhere((5,))) == pytest.approx(jacobian_norm(n2, ones, "linf"), rel=1e-14)


def test_rms_norm_row_is_attained() -> None:
    """The eigenvector of the quadratic form in the derivation reaches (1 + sqrt(n))/2 as eps goes to 0."""
    n = 9
    node = RMSNorm(inputs=(0,), shape=(n,), axes=(0,), eps=1e-12)
    best = 0.0
    for a in torch.linspace(0.01, 1.57, 400, dtype=torch.float64):
        x = torch.full((n,), float(a.cos()) / math.sqrt(n - 1), dtype=torch.float64)
        x[0] = -a.sin()
        s = float(x.square().mean().sqrt())
        best = max(best, jacobian_norm(node, x, "linf") * s)
    assert best == pytest.approx((1 + math.sqrt(n)) / 2, rel=1e-3)
    assert best <= (1 + math.sqrt(n)) / 2


@pytest.mark.parametrize("kind", [Softmax, LogSoftmax])
def test_one_entry_is_constant(kind: type[Node]) -> None:
    node = kind(inputs=(0,), shape=(3, 1), axis=1)
    assert [gain(node, norm, None) for norm in NORMS] == [0, 0, 0]


@norms
@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_normalisation_on_a_box(name: str, norm: Norm) -> None:
    case = CASES[name]
    centre = 3 * case.inputs(8, 1)[0][0]
    box = Interval(centre - 0.1, centre + 0.1)
    value = gain(case.node, norm, box)
    assert value < gain(case.node, norm, None) / 50
    points = points_in([box], 400, 0)[0]
    x, y = points[:200], points[200:]
    reached = size(evaluate(case.node, x) - evaluate(case.node, y), norm) / size(x - y, norm)
    assert_not_below(value, float(reached.max()))
    assert_not_below(value, max(jacobian_norm(case.node, p, norm) for p in points[::20]))
    assert gain(case.node, norm, everywhere(case.shapes[0])) == gain(case.node, norm, None)


def test_normalisation_without_eps() -> None:
    layer = LayerNorm(inputs=(0,), shape=(4,), name="norm", axes=(0,), eps=0.0)
    with pytest.raises(NoRule, match="LayerNorm with eps 0 has unbounded slope where its input is constant"):
        gain(layer, "l2", None)
    x = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    assert gain(layer, "l2", Interval(x, x)) == pytest.approx(1 / math.sqrt(1.25), rel=1e-9)
    with pytest.raises(NoRule, match="input is zero"):
        gain(RMSNorm(inputs=(0,), shape=(4,), axes=(0,), eps=0.0), "linf", None)


def test_reduce_l2_needs_a_shape_in_linf() -> None:
    node = CASES["ReduceL2"].node
    assert gain(node, "l1", None) == gain(node, "l2", None) == 1
    with pytest.raises(NoRule, match="pass a box of the operand's shape"):
        gain(node, "linf", None)


# ---------------------------------------------------------------------------------------------------------------- joins


def joined_quotient(name: str, norm: Norm, seed: int) -> tuple[float, float]:
    """(join's bound, largest quotient) for branches that are random linear maps of one input in a box."""
    case = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(math.prod(s), 4, generator=generator, dtype=torch.float64) for s in case.shapes]
    offset = 30.0 if name == "Divide" else 0.0
    x = torch.rand(600, 4, generator=generator, dtype=torch.float64) * 2 - 1
    x[300:] = (x[:300] + 1e-3 * x[300:]).clamp(-1, 1)

    def branches(points: Tensor) -> list[Tensor]:
        return [(points @ m.T).reshape(-1, *s) + offset for m, s in zip(maps, case.shapes, strict=True)]

    constants = tuple(float(torch.linalg.matrix_norm(m, ORDER[norm])) for m in maps)
    radii = [m.abs().sum(1).reshape(s) for m, s in zip(maps, case.shapes, strict=True)]
    bound = join(case.node, norm, constants, tuple(Interval(offset - r, offset + r) for r in radii))
    y = evaluate(case.node, *branches(x))
    return bound, float((size(y[:300] - y[300:], norm) / size(x[:300] - x[300:], norm)).max())


@norms
@pytest.mark.parametrize("name", ["Add", "Concat", "Maximum", "Multiply", "Divide", "MatMul"])
def test_join_is_at_least_every_quotient(name: str, norm: Norm) -> None:
    for seed in range(4):
        bound, reached = joined_quotient(name, norm, seed)
        assert_not_below(bound, reached)
        assert bound < 1000 * reached


def test_join_tables() -> None:
    case = CASES["Add"].node
    assert join(case, "l2", (1.0, 2.0, 3.0), None) == 6
    cat = Concat(inputs=(0, 1), shape=(2,), axis=0)
    assert [join(cat, norm, (3.0, 4.0), None) for norm in ("l1", "l2", "linf")] == [7, 5, 4]
    assert [join(CASES["Maximum"].node, n, (3.0, 4.0, 0.0), None) for n in ("l1", "l2", "linf")] == [7, 5, 4]
    one = Interval(*(torch.full((2, 3), v, dtype=torch.float64) for v in (-2.0, 1.0)))
    two = Interval(*(torch.full((2, 3), v, dtype=torch.float64) for v in (-4.0, -2.0)))
    assert join(CASES["Multiply"].node, "linf", (3.0, 5.0), (one, two)) == 3 * 4 + 5 * 2
    assert join(CASES["Divide"].node, "l2", (3.0, 5.0), (one, two)) == 3 / 2 + 5 * 2 / 4
    assert join(CASES["Multiply"].node, "l1", (0.0, 0.0), (one, two)) == 0


def test_join_of_matrices() -> None:
    """|A| has row sums 3, 7 and column sums 4, 6; |B| has row sums 6, 15 and column sums 5, 7, 9."""
    a = torch.tensor([[1.0, -2.0], [3.0, 4.0]], dtype=torch.float64)
    b = torch.tensor([[-1.0, 2.0, 3.0], [4.0, 5.0, -6.0]], dtype=torch.float64)
    node = replace(CASES["MatMul"].node, shape=(2, 3))
    boxes = (Interval(a, a), Interval(b, b))
    got = [join(node, norm, (1.0, 0.0), boxes) for norm in NORMS] + [
        join(node, norm, (0.0, 1.0), boxes) for norm in NORMS
    ]
    assert got == pytest.approx([15, math.sqrt(15 * 9), 9, 6, math.sqrt(6 * 7), 7], rel=1e-13)


def test_products_are_refused_where_unbounded() -> None:
    for name, what in (("Multiply", "product"), ("MatMul", "matrix product"), ("Divide", "quotient")):
        case = CASES[name]
        with pytest.raises(NoRule, match=f"a {what} .* is not Lipschitz on the whole space; give a box region"):
            join(case.node, "l2", (1.0, 1.0), None)
        with pytest.raises(NoRule, match="unbounded"):
            join(case.node, "l2", (1.0, 1.0), tuple(everywhere(s) for s in case.shapes))
    box = Interval(*(torch.full((2, 3), v, dtype=torch.float64) for v in (-1.0, 1.0)))
    with pytest.raises(NoRule, match="the divisor may be 0"):
        join(CASES["Divide"].node, "l2", (1.0, 1.0), (box, box))


def test_jumps_are_refused() -> None:
    with pytest.raises(NoRule, match="sign jumps"):
        gain(CASES["Discontinuous sign"].node, "l2", None)
    with pytest.raises(NoRule, match="where jumps"):
        join(CASES["Discontinuous where"].node, "l2", (1.0, 1.0, 1.0), None)
