"""The pathwise identity at observed steps: which force moved the logarithm of every layer's norm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lipscope.claims.quantity import Reading
from lipscope.dynamics.quantities.scene import Scene

if TYPE_CHECKING:
    from lipscope.dynamics.track import IdentityTracker


class IdentityTerms:
    """What `lipscope.dynamics.track` finds at an observed step; silent at moments that are no steps."""

    name = "identity"

    def __init__(self, tracker: IdentityTracker) -> None:
        self.tracker = tracker
        self._begun = False

    def before(self, closure: bool) -> None:
        """Keep what the identity needs of the weights and, unless they come in a closure, gradients before the step."""
        self.tracker.before_step(closure)
        self._begun = True

    def skip(self, steps: int) -> None:
        """So many optimizer steps were not observed."""
        for _ in range(steps):
            self.tracker.skip_step()

    def read(self, scene: Scene) -> Iterable[Reading]:
        """The terms of this step."""
        del scene
        if self._begun:
            self._begun = False
            yield from self.tracker.readings(self.tracker.after_step())
