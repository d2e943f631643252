"""What a bound method is: it accepts a problem or refuses in words, and returns a candidate with its proof."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from lipscope.bounds.problem import NoBound, Problem
from lipscope.bounds.threads import one_thread
from lipscope.claims.progress import Progress, silent
from lipscope.claims.regions import Vector


@dataclass(frozen=True)
class Step:
    """One step of a proof: the constant of the map from the input to a node's value, see docs/certificate.md.

    `rule` is segment, quadratic, branch, gain or join; `start` and `evidence` belong to the first three, `norm` to all but a join.
    """

    node: int
    rule: str
    constant: float
    start: int | None = None
    norm: float | None = None
    evidence: dict[str, object] | None = None


@dataclass(frozen=True)
class LayerRow:
    """One line of the table of layers: an enclosure of the constant of one segment, or of one nonlinear operation.

    Attributes:
        name: the layers of the user's model that are taken together.
        kind: their kinds.
        lower: attained by an explicit vector (None where only an upper bound is known).
        upper: proved.
        evidence: how it was proved.
        seconds: what it took.
    """

    name: str
    kind: str
    lower: float | None
    upper: float
    evidence: str
    seconds: float = 0.0

    @property
    def tight(self) -> bool:
        """Whether the two ends agree to 1e-3."""
        return self.lower is not None and self.upper <= self.lower * (1 + 1e-3)


@dataclass(frozen=True)
class Proof:
    """Why an upper bound holds, in the form that the checker recomputes: steps, or a cover and no steps."""

    method: str
    steps: tuple[Step, ...]
    cover: Cover | None = None


@dataclass(frozen=True, eq=False)
class Cover:
    """Boxes that cover the region, each with a proof; the bound is the largest of theirs.

    Attributes:
        cuts: in preorder, for each box that is cut a coordinate and a place, for each other None; the half below comes first.
        leaves: for each box that is not cut, in the same order, the claim about it and its proof.
    """

    cuts: tuple[tuple[int, float] | None, ...]
    leaves: tuple[tuple[Problem, Proof], ...]


@dataclass(frozen=True)
class Candidate:
    """What a method came to.

    Attributes:
        method: its name.
        value: the upper bound, or None where it has none.
        seconds: wall time.
        proof: why it holds.
        failure: the probability that its random choices went wrong, 0 for a deterministic proof.
        layers: its table of layers.
        note: why it has no value, or what was left out.
        interrupted: whether the user stopped it before it was done.
        blocked: what stood in the way of a finite bound, if anything did.
        points: flattened inputs around which the constant is large, for the search for a lower bound.
    """

    method: str
    value: float | None
    seconds: float
    proof: Proof | None = None
    failure: float = 0.0
    layers: tuple[LayerRow, ...] = ()
    note: str = ""
    interrupted: bool = False
    blocked: NoBound | None = None
    points: tuple[Vector, ...] = ()


@dataclass(frozen=True)
class Effort:
    """What a method may spend.

    Attributes:
        deadline: `time.monotonic()` at which it should return the best it has.
        failure: the largest probability of failure of a randomised proof, over the whole network.
        tolerance: relative width of an operator norm's enclosure that is worth no more work.
        memory: bytes that one operator norm may use; None leaves it to the strategy.
        progress: called with what is being done and the share that is done.
        known: the smallest bound that other methods have proved so far; only a smaller one is of use.
    """

    deadline: float = float("inf")
    failure: float = 1e-9
    tolerance: float = 1e-3
    memory: int | None = None
    progress: Progress = field(default=silent)
    known: float = float("inf")

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self.deadline


class Method(ABC):
    """A way to an upper bound. `run` is final in spirit: subclasses implement `accepts` and `search`."""

    name: str

    @abstractmethod
    def accepts(self, problem: Problem) -> str | None:
        """None if the method can treat the problem, otherwise the reason why not, in words."""

    @abstractmethod
    def search(self, problem: Problem, effort: Effort) -> Candidate:
        """The method's bound. Raises `NoBound` if it has none."""

    def run(self, problem: Problem, effort: Effort) -> Candidate:
        """`search`, refused where the method does not accept the problem; a missing bound becomes a candidate that says why."""
        began = time.monotonic()
        refusal = self.accepts(problem)
        if refusal is not None:
            return Candidate(self.name, None, 0.0, note=refusal)
        try:
            with one_thread():
                return self.search(problem, effort)
        except NoBound as reason:
            return Candidate(self.name, None, time.monotonic() - began, note=str(reason), blocked=reason)
