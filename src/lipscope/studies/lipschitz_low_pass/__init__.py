"""Which frequencies a Lipschitz constraint takes out: band gains of differently trained networks beside their proved bounds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
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
        images: test images at which gains are measured.
        bands: square rings of the spectrum.
        epochs: of training.
        noise: standard deviation of the noise of the noise-augmented network, pixels being in [0, 1].
        attack: length in the largest norm of the step of the adversarially trained network, and of the attack.
        budgets: bounds of the product of the layers' norms, a constrained network for each.
        method: of the proofs: `auto`, or the name of one.
        seconds: that the search for one network's proofs may take at most; products of norms take far less.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    data: str = "auto"
    train: int = 4000
    test: int = 1000
    images: int = 100
    bands: int = 8
    epochs: int = 4
    noise: float = 0.2
    attack: float = 0.05
    budgets: tuple[float, ...] = (16.0, 4.0)
    method: str = "product"
    seconds: float = 300.0

    def __post_init__(self) -> None:
        if len(self.seeds) < 2 or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"expected at least two different seeds for standard errors, got {self.seeds}")
        if not self.budgets or min(self.budgets) <= 0 or len(set(self.budgets)) < len(self.budgets):
            raise UsageError(f"expected one budget or more, all different and above 0, got {self.budgets}")
        if not 1 < self.images <= self.test:
            raise UsageError(f"expected from 2 to {self.test} images, as many as are tested, got {self.images}")


def measure(settings: Settings, progress: Progress) -> dict[str, object]:
    """Gains by band and their bounds for every network and seed, and how the gains fall as the constraint is tightened."""
    from lipscope.bounds.auto import methods
    from lipscope.studies.images import each_network, images

    methods(settings.method)  # a wrong name is refused before anything is trained
    name, data = images(settings.data, settings.train, settings.test)
    recipes = _recipes(settings)
    runs = each_network(
        name, settings.seeds, recipes, lambda recipe, seed: _run(settings, data, recipe, seed), progress
    )
    return {"data": name, "runs": runs} | _summary(runs, list(recipes)) | _constraint(runs, settings)


def _recipes(settings: Settings) -> dict[str, Recipe]:
    from lipscope.studies.images import Recipe

    epochs = settings.epochs
    return {
        "untrained": Recipe(0),
        "standard": Recipe(epochs),
        "noise-augmented": Recipe(epochs, noise=settings.noise),
        "adversarially trained": Recipe(epochs, attack=settings.attack),
    } | {_label(budget): Recipe(epochs, budget=budget) for budget in settings.budgets}


def _label(budget: float) -> str:
    return f"constrained to {budget:g}"


def _run(settings: Settings, data: Data, recipe: Recipe, seed: int) -> dict[str, object]:
    import lipscope
    from lipscope.frequency import band_masks, find_layout, prove_band_bounds, sensitivity
    from lipscope.frequency.band_gain import summaries
    from lipscope.studies.images import accuracy, attacked, train

    model = train(data, recipe, seed)
    x, y = data.x_test, data.y_test
    attack = attacked(model, x, y, settings.attack)
    accuracies = {"accuracy": accuracy(model, x, y), "attacked_accuracy": accuracy(model, attack, y)}
    model = model.double()  # of float32 weights: exact, so that measured and proved are of one network
    bands = band_masks(tuple(x.shape[2:]), settings.bands)
    measured = sensitivity(model, x[: settings.images].double(), bands)
    gains, whole = summaries(measured)
    shape = tuple(x.shape[1:])
    proved = prove_band_bounds(
        lipscope.load(model, input_shape=shape).graph, find_layout(shape), bands, settings.seconds, settings.method
    )
    scores = model(x.double()).detach().topk(2, dim=1).values
    return {
        **accuracies,
        "margin": float((scores[:, 0] - scores[:, 1]).mean()),
        "mean": [gain.mean for gain in gains], "mean_se": [gain.se for gain in gains],
        "largest": [gain.largest for gain in gains], "proved": [result.found.value for result in proved.bands],
        "total_mean": whole.mean, "total_largest": whole.largest, "total_proved": proved.total.found.value,
    }  # fmt: skip


def _summary(runs: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, object]:
    """Means and standard errors over seeds, and the shares of the standard network's mean gains that are left."""
    networks: dict[str, object] = {}
    for label in labels:
        own = _of(runs, label)
        networks[label] = {
            "mean": _columns([run["mean"] for run in own]),
            "largest": _columns([run["largest"] for run in own]),
            "proved": _columns([run["proved"] for run in own]),
            "share_of_standard": _left(runs, "standard", label),
            # The shape alone: how far the highest bands are below the lowest one.
            "highest_over_lowest": _mean([run["mean"][-1] / run["mean"][0] for run in own]),
            "gain_over_margin": _mean([run["total_mean"] / run["margin"] for run in own]),
            "total_proved": _mean([run["total_proved"] for run in own]),
            "accuracy": _mean([run["accuracy"] for run in own]),
            "attacked_accuracy": _mean([run["attacked_accuracy"] for run in own]),
        }
    return {"networks": networks, "bounds_hold": all(_below(run) for run in runs)}


def _constraint(runs: Sequence[Mapping[str, Any]], settings: Settings) -> dict[str, object]:
    """What is left of the mean gains each time that the constraint is tightened, from none to the smallest budget."""
    order = ["standard", *(_label(budget) for budget in sorted(settings.budgets, reverse=True))]
    steps = [{"from": a, "to": b, "left": _left(runs, a, b)} for a, b in pairwise(order)]
    return {"tightened": steps, "falls_with_constraint": _falls(steps)}


def _falls(steps: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether less than all is left at every step in every band, by more than two standard errors.

    False if in some band at some step the gain does not fall on average; None if somewhere the fall is within two errors.
    """
    left = [share for step in steps for share in step["left"]]
    if any(share["mean"] >= 1 for share in left):
        return False
    return True if all(share["mean"] + 2 * share["se"] < 1 for share in left) else None


def _left(runs: Sequence[Mapping[str, Any]], before: str, after: str) -> list[dict[str, float]]:
    """The share of a network's mean gains that another one of the same seed has, for each band."""
    pairs = zip(_of(runs, before), _of(runs, after), strict=True)
    return _columns([[b / a for a, b in zip(one["mean"], other["mean"], strict=True)] for one, other in pairs])


def _of(runs: Sequence[Mapping[str, Any]], label: str) -> list[Mapping[str, Any]]:
    return [run for run in runs if run["network"] == label]


def _below(run: Mapping[str, Any]) -> bool:
    """Whether every measured gain of a network is at most its proved bound, where there is one."""
    pairs = zip([*run["largest"], run["total_largest"]], [*run["proved"], run["total_proved"]], strict=True)
    return all(bound is None or gain <= bound for gain, bound in pairs)


def _columns(rows: Sequence[Sequence[float]]) -> list[dict[str, float]]:
    return [_mean(column) for column in zip(*rows, strict=True)]


def _mean(values: Sequence[float]) -> dict[str, float]:
    """Mean over seeds and its standard error."""
    return {"mean": statistics.fmean(values), "se": statistics.stdev(values) / len(values) ** 0.5}


def judge(figures: Figures, settings: Settings) -> bool | None:
    """Whether no bound is violated and every tightening lowers every band's mean gain by more than two standard errors.

    False if a measured gain exceeds its bound, or some gain does not fall on average. None if a fall is within two standard
    errors over seeds.
    """
    del settings
    return _falls(figures["tightened"]) if figures["bounds_hold"] else False


STUDY = Study(
    name="lipschitz-low-pass",
    claim="The smaller the bound of the Lipschitz constant that a network is trained under, the smaller its gain in every "
    "band of frequencies, and every measured gain is below its proved bound.",
    settings=Settings(),
    measure=measure,
    judge=judge,
)
