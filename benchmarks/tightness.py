"""Tightness against time: lipscope's methods and others' on generated and trained networks, in one run on one core.

    python benchmarks/tightness.py [--only WORD] [--quick] [--large] [--peers [FOLDER]] [--output FILE]

Networks named `He a-b-c, seed s` have Gaussian weights of variance 2/in from `numpy.random.default_rng(s)`; the others are trained on
scikit-learn's digits on the spot. One thread, float64. `--large` adds the large generated networks; `--only` keeps the networks whose
names have the word, `--quick` the first of each family. `--peers` adds others for chains of Linear with ReLU or Tanh: LipSDP-Neuron by cvxpy
with Clarabel and with SCS (the extra `benchmarks`), and eclipse-nn as released, which needs a folder made by
`pip install --no-deps --target FOLDER eclipse-nn==0.1.7`. Each of these gets a process of its own and LIMIT seconds. What is missing, too large
or too slow says so in its row.

Every entry has its value, its ratio to the smallest certified bound of the network, the processor seconds of the search alone, a status and the
checker's seconds. Only the checker's word makes a status "certified"; what nothing proves is "not proved". For the solutions of cvxpy's solvers
the smallest eigenvalue of the matrix that has to be positive semidefinite says whether they satisfy the inequality they are meant to solve.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import multiprocessing
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from environment import environment, versions
from torch import nn
from trained import dense, resnet

from lipscope import bound, load
from lipscope.bounds.method import Candidate, Effort, Method
from lipscope.bounds.problem import Problem
from lipscope.cli.demo_model import train_digits
from lipscope.network.load.load import LoadedModel

GENERATED = [
    (16, 12, 1), (64, 32, 32, 1), (10, 50, 50, 5), (784, 100, 100, 10), (10, *[30] * 5, 5), (10, *[16] * 20, 5),
    (10, *[60] * 10, 5), (100, 400, 400, 10),
]  # fmt: skip
TRAINED = [(64, 48, 10), (64, 24, 24, 10), (64, 16, 16, 16, 16, 10)]
LARGE = [(784, 400, 400, 10), (10, *[60] * 20, 10), (10, *[80] * 50, 10)]
METHODS = ("product", "eclipse-fast", "eclipse", "lipsdp")
PEERS = ("cvxpy with Clarabel", "cvxpy with SCS", "eclipse-nn ECLipsE_Fast", "eclipse-nn ECLipsE")
PACKAGES = ("cvxpy", "clarabel", "scs", "eclipse-nn")
SMALL_ENOUGH = {"CLARABEL": 170, "SCS": 400}
"""Inputs and units up to which a solver is tried: beyond them the matrices of its cone do not fit into a few gigabytes, or nothing ends in time."""
LIMIT = 30
"""Seconds of processor time for one peer on one network."""
SEARCH, BUDGET = 90.0, 20.0
"""Seconds for a method's search, and the budget that everything beside it gets: of it the lower bound, sought once per method, takes a seventh."""
QUICK = ("He 16-12-1", "digits 64-48-10 ReLU")


def he(dims: tuple[int, ...], seed: int = 0) -> nn.Sequential:
    generator = np.random.default_rng(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(dims):
        layer = nn.Linear(a, b).double()
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(generator.standard_normal((b, a)) * np.sqrt(2 / a)))
            layer.bias.copy_(torch.from_numpy(0.1 * generator.standard_normal(b)))
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


Maker = Callable[[], nn.Module]
Row = dict[str, object]


def networks(large: bool) -> dict[str, tuple[Maker, tuple[int, ...]]]:
    found: dict[str, tuple[Maker, tuple[int, ...]]] = {}
    for dims in [*GENERATED, *(LARGE if large else [])]:
        found[f"He {'-'.join(map(str, dims))}, seed 0"] = partial(he, dims), (dims[0],)
    for act in (nn.ReLU, nn.Tanh, nn.GELU):
        for dims in TRAINED:
            found[f"digits {'-'.join(map(str, dims))} {act.__name__}"] = partial(dense, dims, act), (64,)
    found["digits CNN (the demo's)"] = lambda: train_digits(0).model, (1, 8, 8)
    found["digits ResNet, 2 blocks of 6 channels"] = partial(resnet, 6, 2), (1, 8, 8)
    return found


def limited(peer: Callable[..., Row], *arguments: object) -> Row:
    """The peer's row, computed in a process of its own that is ended after LIMIT seconds of processor time."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def answered() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 1))
        there.send(peer(*arguments))

    child = context.Process(target=answered)
    child.start()
    there.close()
    try:
        answer: Row = here.recv()
    except EOFError:
        answer = {}
    child.join()
    if answer:
        return answer
    late = child.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
    return {"value": None, "note": f"not done after {LIMIT} s" if late else f"its process ended with {child.exitcode}"}


def eclipse_nn(model: nn.Module, method: str) -> Row:
    """eclipse-nn's value for a network of Linear with ReLU or Tanh. What it prints (a fall-back, for one) becomes the note."""
    try:
        import cvxpy  # noqa: F401 (so that its import is not counted)
        from eclipse_nn.LipConstEstimator import LipConstEstimator
    except ImportError as missing:
        return {"value": None, "note": f"missing: {missing}"}
    began, said = time.process_time(), io.StringIO()
    try:
        with contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = float(LipConstEstimator(model=copy.deepcopy(model)).estimate(method=method))
    except Exception as failure:  # noqa: BLE001 (a peer's failure is a row of the table)
        return {"value": None, "note": f"{type(failure).__name__}: {failure}"}
    seconds = round(time.process_time() - began, 4)
    return {"value": value, "cpu seconds": seconds, "status": "not proved", "note": said.getvalue().strip() or None}


def by_cvxpy(model: nn.Module, solver: str) -> Row:
    """LipSDP-Neuron of a network of Linear with ReLU or Tanh by cvxpy, every layer's norm brought to 1 first."""
    try:
        import cvxpy
    except ImportError as missing:
        return {"value": None, "note": f"missing: {missing}"}
    weights = [m.weight.detach().double().numpy() for m in model if isinstance(m, nn.Linear)]
    starts = np.cumsum([0, *(w.shape[1] for w in weights)])
    if starts[-1] > SMALL_ENOUGH[solver]:
        return {"value": None, "note": f"not tried: more than {SMALL_ENOUGH[solver]} inputs and units"}
    began = time.process_time()
    norms = [float(np.linalg.norm(w, 2)) for w in weights]
    pick = [np.eye(int(starts[-1]))[a:b] for a, b in pairwise(starts)]
    rho = cvxpy.Variable(nonneg=True)
    last = weights[-1] / norms[-1] @ pick[-1]
    matrix, multipliers = rho * (pick[0].T @ pick[0]) - last.T @ last, []
    for k, (w, norm) in enumerate(zip(weights[:-1], norms, strict=False)):
        u, v = pick[k + 1], w / norm @ pick[k]
        multipliers.append(cvxpy.Variable(len(w), nonneg=True))
        product = u.T @ cvxpy.diag(multipliers[-1]) @ (v - u)
        matrix = matrix - product - product.T
    problem = cvxpy.Problem(cvxpy.Minimize(rho), [(matrix + matrix.T) / 2 >> 0])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            problem.solve(solver=solver)
    except cvxpy.SolverError as failure:
        return {"value": None, "note": str(failure)}
    if rho.value is None:
        return {"value": None, "note": problem.status}
    seconds = round(time.process_time() - began, 4)
    solved = (matrix.value + matrix.value.T) / 2
    lowest, rounding = float(np.linalg.eigvalsh(solved)[0]), len(solved) * 2.0**-52 * float(np.linalg.norm(solved, 2))
    negative = min(float(part.value.min()) for part in multipliers)
    return {
        "value": float(np.sqrt(max(float(rho.value), 0.0)) * np.prod(norms)), "cpu seconds": seconds, "status": "not proved",
        "note": problem.status, "smallest eigenvalue": lowest, "smallest multiplier": negative,
        "violates its inequality": lowest < -rounding or negative < 0.0,
    }  # fmt: skip


@contextlib.contextmanager
def search_clock() -> Iterator[list[float]]:
    """The processor seconds of each method's search while this is open: without loading, the lower bound and the check.

    The search has SEARCH seconds then, whatever the budget.
    """
    seconds: list[float] = []
    run = Method.run

    def timed(self: Method, problem: Problem, effort: Effort) -> Candidate:
        began = time.process_time()
        try:
            return run(self, problem, replace(effort, deadline=time.monotonic() + SEARCH))
        finally:
            seconds.append(time.process_time() - began)

    Method.run = timed  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        Method.run = run  # type: ignore[method-assign]


def ours(model: LoadedModel, method: str) -> tuple[Row, float]:
    """A method's entry, and the lower bound that was attained beside it."""
    with search_clock() as clock:
        result = bound(model, "l2", method=method, budget=BUDGET)
    candidate = result.candidates[-1]
    row: Row = {
        "value": result.upper.value, "cpu seconds": round(sum(clock), 4), "status": result.upper.status,
        "check seconds": None if result.verdict is None else result.verdict["seconds"],
        "wall seconds": round(candidate.seconds, 4), "note": candidate.note or None,
    }  # fmt: skip
    return row, result.lower


def measured(name: str, module: nn.Module, shape: tuple[int, ...], peers: bool) -> Row:
    """One row: every method's entry, the largest lower bound, and the peers where they apply."""
    model, lower = load(module, input_shape=shape), 0.0
    methods: dict[str, Row] = {}
    for method in METHODS:
        methods[method], attained = ours(model, method)
        lower = max(lower, attained)
    if (
        peers
        and isinstance(module, nn.Sequential)
        and all(isinstance(m, nn.Linear | nn.ReLU | nn.Tanh) for m in module)
    ):
        for peer in PEERS:
            package, kind = peer.split()[0], peer.split()[-1]
            call = (by_cvxpy, module, kind.upper()) if package == "cvxpy" else (eclipse_nn, module, kind)
            methods[peer] = limited(*call)
    proved = [float(m["value"]) for m in methods.values() if m.get("status") == "certified" and m["value"] is not None]  # type: ignore[arg-type]
    best = min(proved, default=None)
    for entry in methods.values():
        value = entry["value"]
        entry["ratio to best"] = None if best is None or value is None else float(value) / best  # type: ignore[arg-type]
    return {"network": name, "lower": lower, "best certified": best, "methods": methods}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="WORD")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--peers", nargs="?", const="", metavar="FOLDER")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "tightness.json")
    arguments = parser.parse_args()
    if arguments.peers:
        sys.path.append(arguments.peers)
    torch.set_num_threads(1)
    before, rows = {**environment(), **versions(PACKAGES if arguments.peers is not None else ())}, []
    for name, (make, shape) in networks(arguments.large).items():
        if arguments.only not in name or (arguments.quick and not name.startswith(QUICK)):
            continue
        began = time.monotonic()
        row = measured(name, make(), shape, arguments.peers is not None)
        rows.append(row)
        print(f"{name}: lower {row['lower']:.6g}, {time.monotonic() - began:.1f} s", flush=True)
        for method, entry in row["methods"].items():  # type: ignore[attr-defined]
            print("   ", method, {key: value for key, value in entry.items() if value is not None}, flush=True)
        stored = json.dumps({"environment": before, "rows": rows}, indent=1) + "\n"
        arguments.output.write_text(stored, encoding="utf-8")


if __name__ == "__main__":
    main()
