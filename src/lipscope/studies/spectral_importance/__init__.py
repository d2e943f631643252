"""Spectral importance of differently trained networks: does the score rank them by robustness? (arXiv 2408.01139)"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lipscope.claims.errors import UsageError
from lipscope.claims.progress import Progress
from lipscope.studies.study import Figures, Study

if TYPE_CHECKING:
    from lipscope.studies.data import Data
    from lipscope.studies.images import Recipe


@dataclass(frozen=True)
class Settings:
    """All settings.

    Attributes:
        seeds: of initial weights and batches; each network is trained once for each.
        data: `auto` (Fashion-MNIST where it is installed, else digits), `fashion-mnist` or `digits`.
        train: images for training.
        test: images for accuracies.
        images: test images for importance.
        gain_images: test images for gains.
        bands: square rings of the spectrum.
        filler: what absent bands are replaced by.
        epochs: of training; one network is trained for one epoch only.
        noise: standard deviation of the noise of the noise-augmented network, pixels being in [0, 1].
        attacks: lengths of the steps of two adversarially trained networks; the first is also the attack.
        budget: bound of the product of the layers' norms of the constrained network.
        tolerance: the rank correlation of score and accuracy under attack that the claim asks for; for six networks
            0.886 is the smallest that is significant at 5 per cent, two-sided.
        gap: the largest efficiency gap that is put up with.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    data: str = "auto"
    train: int = 4000
    test: int = 1000
    images: int = 200
    gain_images: int = 32
    bands: int = 8
    filler: str = "other"
    epochs: int = 4
    noise: float = 0.2
    attacks: tuple[float, ...] = (0.05, 0.1)
    budget: float = 4.0
    tolerance: float = 0.886
    gap: float = 1e-4

    def __post_init__(self) -> None:
        if not self.seeds or len(self.attacks) != 2:
            raise UsageError(f"expected a seed or more and two attacks, got {self.seeds} and {self.attacks}")
        if not 1 < max(self.images, self.gain_images) <= self.test:
            raise UsageError(f"expected from 2 to {self.test} images, as many as are tested, got {self.images}")


def measure(settings: Settings, progress: Progress) -> dict[str, object]:
    """Importance, score, accuracies and gains of every network, and what the score's ranks have to do with accuracy."""
    from lipscope.studies.images import each_network, images

    name, data = images(settings.data, settings.train, settings.test)
    recipes = _recipes(settings)
    runs = each_network(
        name, settings.seeds, recipes, lambda recipe, seed: _run(settings, data, recipe, seed), progress
    )
    return {"data": name, "runs": runs} | _summary(runs, list(recipes))


def _recipes(settings: Settings) -> dict[str, Recipe]:
    from lipscope.studies.images import Recipe

    epochs = settings.epochs
    return {
        "standard": Recipe(epochs),
        f"Gaussian noise {settings.noise:g}": Recipe(epochs, noise=settings.noise),
        **{f"adversarially trained {a:g}": Recipe(epochs, attack=a) for a in settings.attacks},
        f"constrained to {settings.budget:g}": Recipe(epochs, budget=settings.budget),
        "one epoch": Recipe(1),
    }


def _run(settings: Settings, data: Data, recipe: Recipe, seed: int) -> dict[str, object]:
    import torch

    from lipscope.frequency import band_gains, band_masks, signed_score, spectral_shapley
    from lipscope.studies.images import accuracy, attacked, train

    model = train(data, recipe, seed)
    x, y = data.x_test, data.y_test
    bands = band_masks(tuple(x.shape[2:]), settings.bands)
    kept = slice(settings.images)
    # The same fillers for all networks, so that their differences are the networks'.
    found = spectral_shapley(
        model, x[kept], y[kept], bands, settings.filler, torch.Generator().manual_seed(seed), batch_size=256
    )
    gains = band_gains(model, x[: settings.gain_images], bands)
    return {
        "accuracy": accuracy(model, x, y),
        "attacked_accuracy": accuracy(model, attacked(model, x, y, settings.attacks[0]), y),
        "importance": found.to_json(), "score": found.score, "score_se": found.score_se,
        "score_from_minimum": signed_score(found.values, baseline="minimum"),
        "gain": [gain.mean for gain in gains],
    }  # fmt: skip


def _summary(runs: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, object]:
    networks = {
        label: {
            key: _mean([run[key] for run in runs if run["network"] == label])
            for key in ("accuracy", "attacked_accuracy", "score", "score_from_minimum")
        } | {
            key: [_mean(column) for column in zip(*(_list(run[key]) for run in runs if run["network"] == label), strict=True)]
            for key in ("importance", "gain")
        }
        for label in labels
    }  # fmt: skip
    seeds = sorted({run["seed"] for run in runs})
    by_seed = [[run for run in runs if run["seed"] == seed] for seed in seeds]
    ranks = {
        "score": [_spearman([r["score"] for r in own], [r["attacked_accuracy"] for r in own]) for own in by_seed],
        "score_from_minimum": [
            _spearman([r["score_from_minimum"] for r in own], [r["attacked_accuracy"] for r in own]) for own in by_seed
        ],
        "gain": [_spearman([max(r["gain"]) for r in own], [r["attacked_accuracy"] for r in own]) for own in by_seed],
    }
    return {
        "networks": networks,
        "spearman_with_attacked_accuracy": {key: {"median": statistics.median(v), "seeds": v} for key, v in ranks.items()},
        "largest_gap": max(run["importance"]["gap"] for run in runs),
    }  # fmt: skip


def _list(value: Any) -> list[float]:
    return list(value["values"] if isinstance(value, Mapping) else value)


def _mean(values: Sequence[float]) -> dict[str, float | None]:
    """Mean over seeds, and its standard error if there are several."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "se": error}


def _spearman(first: Sequence[float], second: Sequence[float]) -> float:
    from scipy.stats import rankdata

    a, b = (rankdata(values).tolist() for values in (first, second))
    return statistics.correlation(a, b) if len(set(a)) > 1 and len(set(b)) > 1 else 0.0


def judge(figures: Figures, settings: Settings) -> bool | None:
    """Whether the median over seeds of the rank correlation of score and accuracy under attack reaches the tolerance.

    None if the values of some network do not add up, so that the scores mean nothing.
    """
    if figures["largest_gap"] > settings.gap:
        return None
    return bool(figures["spearman_with_attacked_accuracy"]["score"]["median"] >= settings.tolerance)


STUDY = Study(
    name="spectral-importance",
    claim="The spectral importance score ranks differently trained networks by their accuracy under attack.",
    settings=Settings(),
    measure=measure,
    judge=judge,
)
