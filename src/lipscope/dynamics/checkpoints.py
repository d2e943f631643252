"""Saved checkpoints of a past run, looked at with the observer's own quantities."""

from __future__ import annotations

import copy
import itertools
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lipscope.claims.errors import ModelError, UsageError
from lipscope.claims.progress import Progress, silent
from lipscope.claims.quantity import Quantity, Reading
from lipscope.dynamics.arguments import Loss, as_data, check_count, check_place
from lipscope.dynamics.own_loss import own_loss
from lipscope.dynamics.panel import Panel, Sources
from lipscope.dynamics.shadow import unwrapped

State = Mapping[str, Any]
Checkpoint = str | Path | State
GROUPS = ("step", "probe", "noise", "proof", "spectrum")
"""Whatever needs no step in the middle of happening."""

COLOURS = re.compile(r"\x1b\[[0-9;]*m")

_KEYS = ("state_dict", "model_state_dict", "model", "weights")


def replay(
    checkpoints: Iterable[Checkpoint] | Mapping[int, Checkpoint],
    model: nn.Module,
    probe: object,
    run: str | Path,
    *,
    loss: Loss | None = None,
    quantities: Sequence[Quantity] = (),
    progress: Progress = silent,
    seed: int = 0,
) -> Path:
    """Write a run from saved weights, as the observer would have at these steps; the run's folder.

    What belongs to a step in the making (gradients, the identity's terms) is not there; path and update lengths are those from
    one checkpoint to the next.

    Args:
        checkpoints: files (`.safetensors`, or what `torch.save` wrote of tensors), or state dicts, in order, or by their
            step. Without steps the last number in a file's name is its step, else they are counted from 0.
        model: of the same architecture; a copy gets the weights, it stays as it is.
        probe: inputs and targets.
        run: a folder without a run.
        loss: of outputs and targets.
        quantities: more to look at.
        progress: called with what is being done and the share that is done.
        seed: of the generator that quantities draw from.

    Raises:
        UsageError: there are no checkpoints, steps are not increasing, a file has no weights, or the folder has a run.
        ModelError: weights do not fit the model.
    """
    check_place(run)
    listed = _by_step(checkpoints)
    if (Path(run) / "run.sqlite").exists():
        raise UsageError(f"expected a folder without a run, got {run}; a replay is a run of its own")
    twin = copy.deepcopy(unwrapped(model))
    for _, checkpoint in reversed(listed):  # all of them before anything is written; the first one stays
        _load(twin, checkpoint)
    groups = (*GROUPS, *(("extra",) if quantities else ()))
    sources = Sources(twin, as_data(probe, "probe"), own_loss(loss), quantities=quantities)
    panel = Panel(sources, run, groups, {"replay": len(listed)}, seed=seed)
    state = "failed"
    try:
        panel.tell("started", f"replay of {len(listed)} checkpoints")
        for done, (step, checkpoint) in enumerate(listed):
            progress(f"replay: step {step}", done / len(listed))
            _load(twin, checkpoint)
            panel.step = step
            if done:
                for watch in panel.groups["step"]:
                    if hasattr(watch, "jumped"):
                        watch.jumped()
            began = time.perf_counter()
            # Proofs first: norms are carried forward from them.
            rows = [row for group in sorted(groups, key=lambda g: g == "step") for row in panel.read([group], step)]
            rows.append(("observer", Reading("seconds", time.perf_counter() - began, "measured")))
            panel.record(step, rows)
        if panel.subject.missing:
            panel.tell("no-graph", panel.subject.missing)
        state = "finished"
    finally:
        panel.close(state)
    return Path(run)


def _by_step(checkpoints: Iterable[Checkpoint] | Mapping[int, Checkpoint]) -> list[tuple[int, Checkpoint]]:
    if isinstance(checkpoints, Mapping):
        if not all(isinstance(step, int) for step in checkpoints):
            raise UsageError(
                "expected checkpoints by step, got a mapping with other keys; put one state dict into a list"
            )
        listed = sorted(checkpoints.items())
    else:
        found = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)
        numbers = [re.findall(r"\d+", Path(c).stem) if isinstance(c, str | Path) else [] for c in found]
        if found and all(numbers):
            listed = list(zip((int(n[-1]) for n in numbers), found, strict=True))
        else:
            listed = list(enumerate(found))
    if not listed:
        raise UsageError("expected at least one checkpoint, got none")
    steps = [step for step, _ in listed]
    for step in steps:
        check_count("checkpoints by step", step)
    if any(b <= a for a, b in itertools.pairwise(steps)):
        raise UsageError(
            f"expected checkpoints in the order of their steps, got steps {steps}; give them as {{step: file}}"
        )
    return listed


def _load(model: nn.Module, checkpoint: Checkpoint) -> None:
    state = _state(checkpoint)
    names = set(model.state_dict())
    for prefix in ("", "module.", "_orig_mod.", "model."):
        if names & {key.removeprefix(prefix) for key in state}:
            state = {key.removeprefix(prefix): value for key, value in state.items()}
            break
    where = str(checkpoint) if isinstance(checkpoint, str | Path) else "a state dict"
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"expected weights of {type(model).__name__} in {where}: {error}") from None


def _state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    if isinstance(checkpoint, Mapping):
        content: Any = checkpoint
    elif Path(checkpoint).suffix == ".safetensors":
        from safetensors.torch import load_file

        content = _read(checkpoint, lambda: load_file(checkpoint))
    else:
        content = _read(checkpoint, lambda: torch.load(checkpoint, map_location="cpu", weights_only=True))
    for key in _KEYS:
        inner = content.get(key) if isinstance(content, Mapping) else None
        if isinstance(inner, Mapping):
            content = inner
            break
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise UsageError(f"expected a state dict of tensors, got {type(content).__name__} from {checkpoint!r:.100}")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _read(path: str | Path, read: Any) -> Any:
    try:
        return read()
    except Exception as error:  # noqa: BLE001 - unpickling and safetensors raise what they like
        raise UsageError(
            f"expected a checkpoint of tensors at {str(path)!r}: {type(error).__name__}: {COLOURS.sub('', str(error))}"
        ) from None
