"""The observer of a training run: hooks on the optimizer that decide what is looked at, at what cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lipscope.claims.errors import UsageError
from lipscope.claims.quantity import Quantity, Reading
from lipscope.dynamics.arguments import (
    Loss,
    as_data,
    check_count,
    check_loss,
    check_place,
    check_quantities,
    check_reference,
    check_writers,
    device_of,
    is_first_rank,
    optimizer_settings,
    own_optimizer,
)
from lipscope.dynamics.budget import Account, Controller, accounts
from lipscope.dynamics.budget import preset as find_preset
from lipscope.dynamics.own_loss import own_loss
from lipscope.dynamics.panel import FIXED, Panel, Rows, Sources
from lipscope.dynamics.quantities.batch_noise import averaged_ranks
from lipscope.dynamics.quantities.identity_terms import IdentityTerms
from lipscope.dynamics.quantities.layer_norms import NormRenewals
from lipscope.dynamics.quantities.scene import StepWatch
from lipscope.dynamics.self_report import SelfReport
from lipscope.dynamics.shadow import unwrapped
from lipscope.dynamics.view import is_compiled, isolated

if TYPE_CHECKING:
    from lipscope.dynamics.track import IdentityTracker
    from lipscope.dynamics.writers import Writer


class Observer:
    """Watches a model while the user's own loop trains it, and writes what it sees into a run's folder.

    Training is bit-identical to training without it: weights, buffers, gradients, optimizer state and random states are
    never touched. Between entering and leaving the block its time is at most about `budget` times the time of training
    (what is read before the first and after the last step, and the export of the model, come on top and are logged as
    `setup_seconds` and `finish_seconds`). Trouble inside it is warned about once and recorded; it never stops training.

        with Observer(model, optimizer, loss=loss_fn, probe=(x, y), run="runs/a"):
            for x, y in loader:
                optimizer.zero_grad(); loss_fn(model(x), y).backward(); optimizer.step()

    Under `DistributedDataParallel` every rank may make one; all but rank 0 do nothing.

    Args:
        model: that the optimizer trains. Compiled or parallel models are looked at through the module inside.
        optimizer: any `torch.optim.Optimizer`.
        loss: of outputs and targets, the mean over examples. A module is copied, since it may keep state; a function must keep none.
        probe: inputs and targets that stay the same, on the model's device and as the model gets them.
        run: folder; a run that is there is continued.
        preset: `lite` (2 %), `default` (5 %) or `research` (25 %).
        budget: the observer's share of the time of training; beats the preset's.
        reference: data for the full gradient; with plain SGD it splits the change of every norm into flow and noise.
        quantities: more to watch.
        writers: that get every reading, too (`lipscope.dynamics.writers`).
        start_step: optimizer steps done before; the last one of the run if it is continued, else 0.
        seed: of the observer's own generator.
        clock: seconds.

    Raises:
        UsageError: probe, reference, loss, preset or budget make no sense, the optimizer does not train this model, or the
            run's folder has a store of another version or of another model.
        ModelError: the model cannot be copied.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        probe: object,
        loss: Loss | None = None,
        run: str | Path = "runs/run",
        preset: str = "default",
        budget: float | None = None,
        reference: object = None,
        quantities: Sequence[Quantity] = (),
        writers: Sequence[Writer] = (),
        start_step: int | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        chosen = find_preset(preset, budget)
        self._optimizer = own_optimizer(model, optimizer)
        self.active = is_first_rank()
        self._closed = False
        self._handles: list[Any] = []
        self._due: list[Account] = []
        self._spent: dict[str, float] = {}
        self._skipped = 0
        self._arming = False
        self._listening = 0.0
        self._clock = clock
        self._began = clock()
        if not self.active:
            return
        check_loss(loss)
        check_place(run)
        check_writers(writers)
        check_count("seed=", seed)
        if start_step is not None:
            check_count("start_step=", start_step)
        check_quantities(quantities)
        sources = Sources(
            model, as_data(probe, "probe"), own_loss(loss), None if reference is None else as_data(reference, "reference"),
            quantities, writers,
        )  # fmt: skip
        check_reference(sources.reference, loss)
        groups = (*chosen.groups, *(("extra",) if quantities else ()))
        self._controller = Controller(chosen.budget, accounts(groups), clock)
        settings = {
            "preset": preset, "budget": chosen.budget, "optimizer": optimizer_settings(optimizer), "seed": seed,
            "reference": None if sources.reference is None else len(sources.reference[0]),
        }  # fmt: skip
        with isolated(device_of(model)):
            self.panel = Panel(
                sources, run, groups, settings, lambda: self._tracker(sources, groups), seed, chosen.budget
            )
        last = self.panel.recorder.last_step
        self.step = start_step if start_step is not None else (last or 0)
        self.panel.step = self.step
        self._own = SelfReport(self._controller, self._optimizer, self.step)
        self.panel.resume(self.step)
        self.panel.tell("started" if last is None else "resumed", f"at step {self.step}")
        self._look_inside(model)

    def _look_inside(self, model: nn.Module) -> None:
        """What wraps the model decides whose gradients can be listened to."""
        compiled = is_compiled(model)
        if (batch := self.panel.batch) is not None:
            batch.ranks, batch.clock = averaged_ranks(model), self._clock
            if compiled:
                batch.give_up()
        if compiled:
            self.panel.tell(
                "compiled",
                "the model is compiled, hooks do not fire in it: weights and updates are those of the compiled model, "
                "everything else is computed on its uncompiled twin",
            )

    def _tracker(self, sources: Sources, groups: Sequence[str]) -> IdentityTracker | None:
        if "identity" not in groups:
            return None
        from lipscope.dynamics.track import IdentityTracker

        reference = None
        if sources.reference is not None and sources.reference[1] is not None:
            reference = sources.reference[0], sources.reference[1]
        return IdentityTracker(
            unwrapped(sources.model), self._optimizer, probe=sources.probe[0], loss=sources.loss,
            reference=reference,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------- life cycle

    def __enter__(self) -> Observer:
        self.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach("" if kind is None else f"{kind.__name__}: {error}" if str(error) else kind.__name__)

    def attach(self, hooks: bool = True) -> None:
        """Read everything once and begin to watch; without `hooks`, `before_step` and `after_step` are left to the caller.

        Raises:
            UsageError: this observer was closed before.
        """
        if self._closed:
            raise UsageError(
                "expected an observer that was not used before, got one that is closed; make a new one with the same run=, "
                "which goes on after its last step"
            )
        if not self.active or self._handles:
            return
        groups = [a.name for a in self._controller.accounts]
        if "proof" in groups:
            self._safely(self.panel.subject.prepare)
        rows: Rows = []
        for account in self._controller.accounts:
            fixed = account.name in FIXED
            if fixed:
                self._safely(lambda name=account.name: self._rehearse(name))  # type: ignore[misc]
            began = self._clock()
            if fixed:
                self._safely(lambda name=account.name: self._rehearse(name))  # type: ignore[misc]
            else:
                rows += self._read(account.name)
            account.read(self.step, self._clock() - began, rehearsed=fixed, paid=False)
            self._fund(account)
        rows += self._read("step")
        rows.append(("observer", Reading("setup_seconds", self._clock() - self._began, "measured")))
        self._safely(lambda: self.panel.record(self.step, rows))
        if self.panel.subject.missing:
            self.panel.tell("no-graph", self.panel.subject.missing)
        if hooks:
            self._handles = [
                self._optimizer.register_step_pre_hook(self._pre_hook),
                self._optimizer.register_step_post_hook(self._post_hook),
            ]
        self._controller.start(self.step)

    def _rehearse(self, group: str) -> None:
        """Look at a step in which nothing happens: the first time is slow, and a cost is known before the first step."""
        trackers = [w.tracker for w in self.panel.groups.get(group, []) if isinstance(w, IdentityTerms)]
        for tracker in trackers:
            tracker.rehearse()
        if not trackers:
            self._before(group, closure=False)
            self.panel.read([group], self.step)

    def detach(self, failed: str = "") -> None:
        """Stop watching: after the last step everything is read once more, and the session is closed.

        Args:
            failed: why training ended before its end; then nothing is read any more.
        """
        if not self.active:
            return
        self.active, self._closed = False, True
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if (batch := self.panel.batch) is not None:
            batch.disarm()
        if not failed and not self.panel.stopped:
            began = self._clock()
            groups = [a.name for a in self._controller.accounts if a.name not in FIXED and a.last < self.step]
            rows = [row for group in groups for row in self._read(group)]
            rows += self._read("step")  # last, as at the beginning: from the bounds that were just proved
            rows += self._own.readings(self.step)
            for tracker in self.panel.trackers:
                for _ in range(self._skipped):
                    tracker.skip_step()
            rows.append(("observer", Reading("finish_seconds", self._clock() - began, "measured")))
            self._safely(lambda: self.panel.record(self.step, rows))
        self._safely(lambda: self.panel.close("failed" if failed else "finished", failed))

    # ------------------------------------------------------------------------------------------------------ steps

    def _pre_hook(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.before_step(closure=any(callable(x) for x in (*args, *kwargs.values())))  # args hold the optimizer, too

    def _post_hook(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.after_step()

    def before_step(self, closure: bool = False) -> None:
        """Right before the optimizer's step. `closure`: gradients at this point are not those of the step."""
        batch = self.panel.batch if self.active else None
        armed = batch is not None and batch.armed
        if not self.active or self.panel.stopped or (self.step + 1 < self._controller.wake and not armed):
            return
        heard = batch.seconds if batch is not None else 0.0
        self._controller.aside(heard)
        entered = self._controller.enter(self.step + 1)
        self._due = self._controller.due(self.step + 1)
        self._spent = {}
        charged = self._listen(closure)
        if armed:
            self._spent["noise"] = self._listening + heard + charged
        for account in list(self._due):
            if account.name in FIXED:
                began = self._clock()
                self._safely(lambda name=account.name: self._before(name, closure))  # type: ignore[misc]
                self._spent[account.name] = self._clock() - began
                charged += self._spent[account.name]
        if not self._due:
            self._controller.sleep(self.step + 1)
        self._controller.leave(entered, charged)

    def _listen(self, closure: bool) -> float:
        """Noise is read after a step whose gradients were listened to: one that is due begins with the next step.

        Returns:
            Seconds that it took.
        """
        batch, began = self.panel.batch, self._clock()
        if batch is None:
            return 0.0
        account = next(a for a in self._controller.accounts if a.name == "noise")
        armed = batch.armed
        if closure:
            batch.give_up()
        if armed:
            known = batch.several
            self._safely(batch.finish)
            self._due = [a for a in self._due if a is not account]
            if batch.several and not known:  # now that there is something to hear, the next step is listened to
                self._arming = True
            else:
                self._due.append(account)
        elif batch.wanted and account in self._due:
            self._due.remove(account)
            self._arming = True
        return self._clock() - began

    def _arm(self) -> None:
        self._arming = False
        batch = self.panel.batch
        if batch is None:
            return
        entered = self._controller.enter(self.step, whole=False)
        self._safely(batch.arm)
        self._listening = self._clock() - entered
        self._controller.leave(entered, self._listening)

    def _before(self, group: str, closure: bool) -> None:
        watches = self.panel.groups.get(group, [])
        with isolated(self.panel.view.device, draws=group == "identity"):
            for watch in list(watches):
                if closure and isinstance(watch, IdentityTerms):
                    self.panel.trouble(
                        "closure",
                        "the optimizer computes its gradients in a closure, or they are clipped later: the identity's terms "
                        "are curvature and correction of the whole update, its first order is in the term 'remainder'",
                    )
                if isinstance(watch, StepWatch):
                    try:
                        if isinstance(watch, IdentityTerms):
                            watch.skip(self._skipped)
                            self._skipped = 0
                        watch.before(closure)
                    except Exception as error:  # noqa: BLE001 - must not reach training
                        watches.remove(watch)
                        self.panel.trouble(
                            f"quantity {watch.name}",
                            f"{watch.name!r} failed and is left out: {type(error).__name__}: {error}",
                        )

    def after_step(self) -> None:
        """Right after the optimizer's step."""
        self.step += 1
        if not self._due:
            self._skipped += 1
            if self._arming:
                self._arm()
            return
        entered = self._controller.enter(self.step, whole=False)
        rows: Rows = []
        charged = 0.0
        for account in self._due:
            self._fund(account)
            began = self._clock()
            rows += self._read(account.name)
            spent = self._clock() - began
            charged += spent
            account.read(self.step, spent + self._spent.get(account.name, 0.0))
        if "identity" not in self._spent:
            self._skipped += 1
        if rows:
            self._own.count(len(rows))
            rows += self._own.readings(self.step)
            self._safely(lambda: self.panel.record(self.step, rows, self._controller.training))
        self._due = []
        self._controller.sleep(self.step)
        self._controller.leave(entered, charged)
        if self._arming:
            self._arm()

    def _read(self, group: str) -> Rows:
        return self._safely(lambda: self.panel.read([group], self.step)) or []

    def _fund(self, account: Account) -> None:
        """A reading of unequal cost is told what its account holds, which saves up for the dearest."""
        for watch in self.panel.groups.get(account.name, []):
            if isinstance(watch, NormRenewals):
                watch.allowance, account.saves = account.balance, watch.dearest

    def _safely(self, action: Callable[[], Any]) -> Any:
        """What the action returns; if it fails, the user is told once and training goes on."""
        try:
            return action()
        except Exception as error:  # noqa: BLE001 - must not reach training
            self.panel.trouble(f"observer {type(error).__name__}", f"observing failed: {type(error).__name__}: {error}")
            return None
