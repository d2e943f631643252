"""Which frequencies a Lipschitz constraint takes out: band gains of differently trained networks beside their proved bounds."""

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
        images: test images at which gains are measured.
        bands: square rings of the spectrum.
        epochs: of training.
        noise: standard deviation of the noise of the noise-augmented network, pixels being in [0, 1].
        attack: length in the largest norm of the step of the adversarially trained network, and of the attack.
        budgets: bounds of the product of the layers' norms, a constrained network for each.
        seconds: that the search for one network's proofs may take at most; they usually take far less.
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
    seconds: float = 300.0

    def __post_init__(self) -> None:
        if len(self.seeds) < 2 or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"expected at least two different seeds for standard errors, got {self.seeds}")
        if not self.budgets or min(self.budgets) <= 0:
            raise UsageError(f"expected one budget or more, all above 0, got {self.budgets}")
        if not 1 < self.images <= self.test:
            raise UsageError(f"expected from 2 to {self.test} images, as many as are tested, got {self.images}")


def measure(settings: Settings, progress: Progress) -> dict[str, object]:
    """Gains by band and their bounds for every network and seed, and the constrained networks' share of the standard one's."""
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
        "untrained": Recipe(0),
        "standard": Recipe(epochs),
        "noise-augmented": Recipe(epochs, noise=settings.noise),
        "adversarially trained": Recipe(epochs, attack=settings.attack),
    } | {f"constrained to {budget:g}": Recipe(epochs, budget=budget) for budget in settings.budgets}


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
        lipscope.load(model, input_shape=shape).graph, find_layout(shape), bands, settings.seconds, method="product"
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
    by_label = {label: [run for run in runs if run["network"] == label] for label in labels}
    networks: dict[str, object] = {}
    for label, own in by_label.items():
        shares = [
            [a / b for a, b in zip(run["mean"], standard["mean"], strict=True)]
            for run, standard in zip(own, by_label["standard"], strict=True)
        ]
        networks[label] = {
            "mean": _columns([run["mean"] for run in own]),
            "largest": _columns([run["largest"] for run in own]),
            "proved": _columns([run["proved"] for run in own]),
            "share_of_standard": _columns(shares),
            # The shape alone: how far the highest bands are below the lowest one.
            "highest_over_lowest": _mean([run["mean"][-1] / run["mean"][0] for run in own]),
            "gain_over_margin": _mean([run["total_mean"] / run["margin"] for run in own]),
            "total_proved": _mean([run["total_proved"] for run in own]),
            "accuracy": _mean([run["accuracy"] for run in own]),
            "attacked_accuracy": _mean([run["attacked_accuracy"] for run in own]),
        }
    return {"networks": networks, "bounds_hold": all(_below(run) for run in runs)}


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
    """Whether no bound is violated, and under the smallest budget every band's mean gain falls by more than two errors.

    False if a measured gain exceeds its bound, or in some band the gain does not fall on average. None if in some band the
    fall is within two standard errors over seeds.
    """
    if not figures["bounds_hold"]:
        return False
    shares = figures["networks"][f"constrained to {min(settings.budgets):g}"]["share_of_standard"]
    if any(share["mean"] >= 1 for share in shares):
        return False
    return True if all(share["mean"] + 2 * share["se"] < 1 for share in shares) else None


STUDY = Study(
    name="lipschitz-low-pass",
    claim="Training under a bound of the Lipschitz constant lowers the network's gain in every band of frequencies, "
    "and every measured gain is below its proved bound.",
    settings=Settings(),
    measure=measure,
    judge=judge,
)
