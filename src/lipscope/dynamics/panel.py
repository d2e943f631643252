"""The quantities of a run at one moment: read them, keep what fails from doing harm, look for alerts, record."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lipscope.claims.errors import UsageError
from lipscope.claims.quantity import Moment, Quantity, Reading
from lipscope.dynamics.alerts import Watchman
from lipscope.dynamics.arguments import Data, Loss, check_loss_value
from lipscope.dynamics.layers import watched_layers
from lipscope.dynamics.quantities import TABLE, Parts, make_quantities
from lipscope.dynamics.quantities.batch_noise import BatchNoise
from lipscope.dynamics.quantities.identity_terms import IdentityTerms
from lipscope.dynamics.quantities.scene import WHOLE, Scene, Subject, Watch, dtype_of, scale_of
from lipscope.dynamics.recorder import Entry, Recorder, warn_user
from lipscope.dynamics.view import ModelChanged, View, check_probe, isolated, seen_by_others

if TYPE_CHECKING:
    from lipscope.dynamics.track import IdentityTracker
    from lipscope.dynamics.writers import Writer

Rows = list[tuple[str, Reading]]

FIXED = ("step", "identity")
"""Groups that look at weights alone and never call the model."""


@dataclass(frozen=True)
class Sources:
    """What a run is about.

    Attributes:
        model: the user's model.
        probe: inputs and targets (or None) on which the network is looked at.
        loss: of outputs and targets, or None.
        reference: larger data for gradients, or None.
        quantities: of the user or of other rooms.
        writers: that get the readings, too.
    """

    model: nn.Module
    probe: Data
    loss: Loss | None = None
    reference: Data | None = None
    quantities: Sequence[Quantity] = ()
    writers: Sequence[Writer] = ()


class Panel:
    """Everything that is read of one model, and where it goes.

    Args:
        sources: model, probe, loss, quantities, writers.
        run: the run's folder.
        groups: of quantities, see `lipscope.dynamics.budget`.
        settings: what the session's entry in the store says about itself.
        tracker: makes the tracker of the identity, or None.
        seed: of the generator that quantities draw from.
        budget: for the alert.

    Raises:
        UsageError: the probe does not fit the model or the loss, two quantities have one name, or the store is refused.
        ModelError: the model cannot be copied.
    """

    def __init__(
        self,
        sources: Sources,
        run: str | Path,
        groups: Sequence[str],
        settings: dict[str, Any],
        tracker: Callable[[], IdentityTracker | None] = lambda: None,
        seed: int = 0,
        budget: float = float("inf"),
    ) -> None:
        self._said: set[str] = set()
        self.stopped = False
        self._sources = sources
        self.view = View(sources.model)
        inputs, targets = sources.probe
        outputs = check_probe(self.view, inputs, targets)
        with isolated(self.view.device):
            check_loss_value(sources.loss, outputs, targets)
            if sources.reference is not None:
                whole = check_probe(self.view, *sources.reference, "reference")
                check_loss_value(sources.loss, whole, sources.reference[1], summed=False)
        layers, notes = watched_layers(self.view, inputs)
        self.subject = Subject(self.view, inputs, layers, notes, joined=seen_by_others(self.view, inputs, outputs))
        parts = Parts(self.subject, targets, sources.loss, sources.reference or sources.probe, tracker())
        self.groups: dict[str, list[Watch]] = make_quantities(groups, parts)
        names = [q.name for q in sources.quantities]
        for name in names:
            if name in TABLE or name == "observer" or names.count(name) > 1:
                raise UsageError(f"expected quantities with names of their own, got {name!r} twice or as one of ours")
        self._extra = list(sources.quantities)
        self._generator = torch.Generator(device="cpu").manual_seed(seed)
        self._scale = scale_of(inputs)
        classes = outputs.shape[-1] if outputs.ndim == 2 and outputs.shape[1] > 1 else None
        labelled = targets is not None and not targets.is_floating_point()
        self._watchman = Watchman(classes - 1 if classes and labelled else None, budget)
        self.step = 0
        self._recorded: list[dict[str, Any]] = []
        self.recorder = Recorder(run, {"model": self._model()}, _session(settings, inputs, self._scale))
        for note in notes:
            self.tell("layers", note)
        if self.subject.joined:
            self.trouble("examples", self.subject.joined)
        if not inputs.is_floating_point():
            self.trouble("whole numbers", WHOLE.format(dtype=dtype_of(inputs)))

    # --------------------------------------------------------------------------------------------------- reading

    def read(self, groups: Iterable[str], step: int) -> Rows:
        """The readings of these groups at this moment; a quantity that fails is left out from then on.

        There are none once the model is not the one that it was: then the panel is `stopped`.
        """
        rows: Rows = []
        if self.stopped:
            return rows
        chosen = list(groups)
        calls = any(group not in FIXED for group in chosen)
        with isolated(self.view.device, draws=calls):
            try:
                self.view.refresh()
                if "proof" in chosen and not self.subject.joined:
                    self.view.check(inputs=self._sources.probe[0][:4])
            except ModelChanged as reason:
                self.stopped = True
                self.trouble("changed", str(reason))
                return []
            self.subject.forget()
            finite = not calls or self._finite()
            if not finite and "not finite" not in self._said:
                self._said.add("not finite")
                self.tell("not-finite", f"weights are nan or inf at step {step}: nothing that calls the model is read")
            for group in chosen:
                if group in FIXED or finite:
                    rows += self.read_group(group, step)
        return rows

    def read_group(self, group: str, step: int) -> Rows:
        """The readings of one group; the view must be up to date."""
        rows: Rows = []
        if group == "extra":
            for own in list(self._extra):
                rows += self._guarded(own.name, lambda own=own: own.read(self._moment(step)), self._extra, own)  # type: ignore[misc]
            return rows
        scene = self._scene(step)
        watches = self.groups.get(group, [])
        for watch in list(watches):
            rows += self._guarded(watch.name, lambda watch=watch: watch.read(scene), watches, watch)  # type: ignore[misc]
        return rows

    def _guarded(self, name: str, read: Callable[[], Iterable[Reading]], table: list[Any], item: object) -> Rows:
        try:
            return [(name, _plain(reading)) for reading in read()]
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here must not reach training
            table.remove(item)
            self.trouble(f"quantity {name}", f"the quantity {name!r} failed and is left out: {_words(error)}")
            return []

    def _scene(self, step: int) -> Scene:
        inputs, targets = self._sources.probe
        return Scene(
            step, self.view.model, inputs, targets, self._sources.loss, self._generator, self.subject, self._scale
        )

    def _moment(self, step: int) -> Moment:
        inputs, targets = self._sources.probe
        own = targets if targets is None else targets.clone()
        return Moment(step, self.view.own_copy(), inputs.clone(), own, self._sources.loss, self._generator)

    def _finite(self) -> bool:
        weights = [p.detach() for p in self.view.model.parameters() if p.is_floating_point()]
        return not weights or all(bool(torch.isfinite(n)) for n in torch._foreach_norm(weights))

    # ------------------------------------------------------------------------------------------------- recording

    def record(self, step: int, rows: Rows, seconds: float = 0.0) -> None:
        """Commit the readings of a step, with the alerts that they give, and hand them to the writers."""
        self.step = step
        alerts = self._watchman.look(step, rows, seconds)
        self.recorder.record(Entry(step, time.time(), rows, [alert.row() for alert in alerts], self._totals(step)))
        for writer in self._sources.writers:
            if f"writer {id(writer)}" not in self._said:
                try:
                    writer.write(step, rows)
                except Exception as error:  # noqa: BLE001
                    self.trouble(
                        f"writer {id(writer)}", f"{type(writer).__name__} failed and is left out: {_words(error)}"
                    )

    def _totals(self, step: int) -> dict[str, Any]:
        """The sums of the identity, where they have changed since they were recorded."""
        states = [tracker.state_dict() for tracker in self.trackers]
        if not states or states == self._recorded:
            return {}
        self._recorded = states
        return {"identity": {"step": step, "totals": states[0]}}

    def resume(self, step: int) -> None:
        """Go on from the sums of an earlier session, whose steps that nobody saw count as steps; not if it was further."""
        kept = self.recorder.kept.get("identity")
        if not self.trackers or kept is None:
            return
        if kept["step"] > step:
            self.tell("totals", f"the sums of the identity begin anew: they were those of step {kept['step']}")
            return
        (tracker,) = self.trackers
        tracker.load_state_dict(kept["totals"])
        for _ in range(step - kept["step"]):
            tracker.skip_step()

    @property
    def trackers(self) -> list[IdentityTracker]:
        """That of the identity, or none."""
        return [watch.tracker for watch in self.groups.get("identity", []) if isinstance(watch, IdentityTerms)]

    @property
    def batch(self) -> BatchNoise | None:
        """What listens to the gradients of a step, or nothing."""
        return next((watch for watch in self.groups.get("noise", []) if isinstance(watch, BatchNoise)), None)

    def tell(self, kind: str, message: str) -> None:
        """Record something that happened."""
        self.recorder.event(self.step, kind, message)

    def trouble(self, kind: str, message: str) -> None:
        """Warn once about each kind of trouble, and record it; never raises."""
        if kind in self._said:
            return
        self._said.add(kind)
        warn_user(message)
        self.recorder.event(self.step, "trouble", message)

    def close(self, state: str, reason: str = "") -> None:
        """End the session and the writers."""
        self.tell(state, reason)
        self.recorder.close(state)
        for writer in self._sources.writers:
            try:
                writer.close()
            except Exception as error:  # noqa: BLE001
                warn_user(f"{type(writer).__name__} could not be closed: {_words(error)}")

    def _model(self) -> dict[str, Any]:
        live = self.view.live
        layers = [
            {
                "name": layer.name, "kind": type(layer.module).__name__, "shape": list(layer.weight.shape),
                "parameters": sum(p.numel() for p in layer.module.parameters(recurse=False)),
            }
            for layer in self.subject.layers
        ]  # fmt: skip
        return {
            "class": type(live).__name__, "parameters": sum(p.numel() for p in live.parameters()), "layers": layers,
            "calls": {factor.name: factor.calls for tracker in self.trackers for factor in tracker.factors},
        }  # fmt: skip


def _session(settings: dict[str, Any], inputs: Tensor, scale: str) -> dict[str, Any]:
    environment = {
        "python": platform.python_version(), "torch": torch.__version__, "lipscope": metadata.version("lipscope"),
        "system": platform.platform(), "threads": torch.get_num_threads(), "process": os.getpid(),
    }  # fmt: skip
    probe = {"shape": list(inputs.shape), "dtype": str(inputs.dtype), "scale": scale}
    return {"settings": settings, "environment": environment, "probe": probe}


def _plain(reading: Reading) -> Reading:
    """The reading with a float for its value, whatever number it was."""
    if type(reading.value) is float:
        return reading
    return Reading(reading.name, float(reading.value), reading.certainty, reading.layer, reading.samples, reading.note)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
