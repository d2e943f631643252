"""Small trainings, with and without the observer, and everything of them that must not differ."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipscope.dynamics.observer import Observer

Loop = Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor, int], None]
LOSS = nn.CrossEntropyLoss()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def data(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(32, 6, generator=generator), torch.randint(0, 3, (32,), generator=generator)


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> None:
    """One step as most people write it; the batch is drawn from the global generator."""
    batch = torch.randint(0, len(x), (8,))
    optimizer.zero_grad()
    LOSS(model(x[batch]), y[batch]).backward()
    optimizer.step()


def frozen_clock() -> float:
    """No time passes: everything that is due is affordable."""
    return 0.0


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All that training leaves behind, but for the state of `random`, from which the checks of annotations draw."""
    found: dict[str, Any] = {f"state {k}": v.detach().clone() for k, v in model.state_dict().items()}
    found |= {f"grad {k}": None if p.grad is None else p.grad.clone() for k, p in model.named_parameters()}
    found |= {f"version {k}": p._version for k, p in model.named_parameters()}
    found |= {f"needs {k}": p.requires_grad for k, p in model.named_parameters()}
    found |= {f"mode {k}": m.training for k, m in model.named_modules()}
    found |= {f"hooks {k}": len(m._forward_hooks) + len(m._forward_pre_hooks) for k, m in model.named_modules()}
    for i, state in enumerate(optimizer.state.values()):
        found |= {f"optimizer {i} {k}": v.clone() if isinstance(v, Tensor) else repr(v) for k, v in state.items()}
    found["torch"] = torch.get_rng_state()
    found["numpy"] = torch.from_numpy(np.random.get_state()[1].astype(np.int64))
    found["numpy position"] = np.random.get_state()[2]
    found["grad mode"] = torch.is_grad_enabled()
    found["autocast"] = torch.is_autocast_enabled("cpu")
    return found


def expect_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """The same to the last bit (NaN equal to NaN)."""
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, Tensor):
            assert value.dtype == b[key].dtype and value.shape == b[key].shape, key
            same = value.contiguous().flatten().view(torch.uint8), b[key].contiguous().flatten().view(torch.uint8)
            assert torch.equal(*same), f"{key} differs"
        else:
            assert value == b[key], f"{key} differs: {value!r:.99} and {b[key]!r:.99}"


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Global random states begin alike inside and are put back afterwards."""
    numbers, words = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield
    np.random.set_state(numbers)
    random.setstate(words)


def train(
    folder: Path | None,
    make: Callable[[], nn.Module] = mlp,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    loop: Loop = plain,
    steps: int = 6,
    wrap: Callable[[nn.Module], nn.Module] = lambda m: m,
    probe: tuple[Tensor, Tensor] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What a training leaves behind: observed if there is a folder, alone otherwise."""
    x, y = data() if probe is None else probe
    with seeded():
        model = wrap(make())
        chosen = optimizer(model)
        watching: Any = nullcontext()
        if folder is not None:
            settings = {"loss": LOSS, "probe": (x, y), "run": folder, "clock": frozen_clock, **options}
            watching = Observer(model, chosen, **settings)
        with watching:
            for step in range(steps):
                loop(model, chosen, x, y, step)
        return everything(model, chosen)
