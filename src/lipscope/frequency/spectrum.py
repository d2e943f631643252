"""Everything at once: what `lipscope spectrum` measures and proves about one network on one set of data."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from lipscope.certificate.bundle import write_bundle
from lipscope.certificate.files import new_folder
from lipscope.certificate.result import Result
from lipscope.claims.errors import InternalError, Interrupted, UsageError
from lipscope.claims.progress import Progress, silent
from lipscope.frequency.band_bounds import BandBounds, prove_band_bounds
from lipscope.frequency.band_gain import Gain, summaries
from lipscope.frequency.bands import Bands
from lipscope.frequency.data import Data
from lipscope.frequency.evaluation import Model
from lipscope.frequency.gradient_spectrum import by_class, radial_profile, split
from lipscope.frequency.jacobian import Sensitivity, sensitivity
from lipscope.frequency.layout import Layout
from lipscope.frequency.statistics import number, numbers
from lipscope.frequency.transfer import Transfer, noise_bound, noise_response, transfer_matrices
from lipscope.frequency.waves import distinct_frequencies
from lipscope.network.graph import Graph
from lipscope.rules.graph_value import evaluate_graph

if TYPE_CHECKING:
    from lipscope.frequency.heatmap import HeatMap
    from lipscope.frequency.importance import SpectralImportance, Value
    from lipscope.network.load.load import LoadedModel

MARKER = "spectrum.json"
"""The file of a spectrum's folder; the folders beside it are bundles."""

ROOM = 1e-9
"""A measured gain may be so much above its proved bound, relatively, before something is wrong: it is not rounded outward."""

EXPONENTS = (0.0, 1.0, 2.0)
"""Power laws of the noise whose response is reported."""


@dataclass(frozen=True)
class Wishes:
    """What is wanted beside measured gains.

    Attributes:
        bounds: whether upper bounds are proved.
        check: whether the independent checker decides.
        importance: whether Shapley values of the bands are computed, if there are labels.
        filler: what absent bands are replaced by.
        heat_norm: length of the waves of the Fourier heat map, None for no map.
        heat_frequencies: so many frequencies of the map, drawn at random; all if None, or if there are no more.
        budget: seconds for the search for bounds.
        method: of the bounds, auto or the name of one.
        depth_samples: with how many examples transfer between layers is measured; 0 for not at all.
    """

    bounds: bool = True
    check: bool = True
    importance: bool = True
    filler: str = "other"
    heat_norm: float | None = None
    heat_frequencies: int | None = None
    budget: float = 30.0
    method: str = "auto"
    depth_samples: int = 32


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The result; parts that were not wanted, not possible or not reached are None or empty.

    Attributes:
        graph: the network.
        data: where it was measured.
        bands: of the input's grid.
        measured: its Jacobians by frequency.
        bounds: the proved side.
        importance: Shapley values of the bands.
        heat_map: error or change under waves of each frequency.
        layers: transfer of energy between bands, layer by layer.
        notes: what the reader should know.
        interrupted: whether the user stopped it.
        seconds: wall time.
    """

    graph: Graph
    data: Data
    bands: Bands
    measured: Sensitivity
    bounds: BandBounds | None = None
    importance: SpectralImportance | None = None
    heat_map: HeatMap | None = None
    layers: tuple[Transfer, ...] = ()
    notes: tuple[str, ...] = ()
    interrupted: bool = False
    seconds: float = field(default=0.0)

    @property
    def accepted(self) -> bool:
        """Whether the checker refused nothing that it was asked about."""
        if self.bounds is None:
            return True
        return all(r.verdict is None or bool(r.verdict["accepted"]) for r in self.bounds.results.values())

    def to_json(self) -> dict[str, object]:
        """The object that `lipscope spectrum --json` prints, also stored as `spectrum.json`."""
        gains, whole = summaries(self.measured)
        results = [None] * self.bands.count if self.bounds is None else list(self.bounds.bands)
        rows = [self._band(i, gain, result) for i, (gain, result) in enumerate(zip(gains, results, strict=True))]
        total = None if self.bounds is None else self.bounds.total
        power, exact = self.measured.power, self.measured.exact
        gradient = split(power, self.bands, exact).to_json()
        if self.data.y is not None and not self.data.y.is_floating_point():
            classes = by_class(power, self.data.y, self.bands, exact)
            gradient["classes"] = {str(label): found.to_json() for label, found in classes.items()}
        return {
            "schema": "lipscope-spectrum/1",
            "model": {
                "source": self.graph.source, "digest": self.graph.digest,
                "inputs": [list(s) for s in self.graph.input_shapes],
                "outputs": [list(s) for s in self.graph.output_shapes],
            },
            "data": {
                "source": self.data.source, "samples": len(self.data.x), "grid": list(self.bands.grid),
                "channels": self.data.x.shape[1], "labels": self.data.y is not None,
                "lowest": float(self.data.x.min()), "highest": float(self.data.x.max()),
            },
            "kind": self.bands.kind,
            "bands": rows,
            "total": {**self._gain(whole), **_proved(total)},
            "exact": exact,
            "importance": None if self.importance is None else numbers(self.importance.values),
            "importance_detail": None if self.importance is None else self.importance.to_json(),
            "gradient": gradient,
            "profile": radial_profile(power, self.bands.grid),
            "noise": self._noise(),
            "transfer": [layer.to_json() for layer in self.layers],
            "heatmap": None if self.heat_map is None else _heat_json(self.heat_map, self.bands),
            "notes": list(self.notes),
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 3),
        }  # fmt: skip

    def _gain(self, gain: Gain) -> dict[str, object]:
        return {**gain.to_json(), "measured_at": self.data.places[gain.at]}

    def _band(self, index: int, gain: Gain, result: Result | None) -> dict[str, object]:
        ends = {"low": self.bands.low[index], "high": self.bands.high[index]}
        return {**ends, "frequencies": self.bands.sizes[index], **self._gain(gain), **_proved(result)}

    def _noise(self) -> dict[str, object]:
        responses = [noise_response(self.measured.power, e).to_json() for e in EXPONENTS]
        proved = [] if self.bounds is None else [r.upper.value for r in self.bounds.bands]
        finite = [value for value in proved if value is not None]
        bound = None
        if self.bounds is not None and len(finite) == len(proved):
            channels, outputs = self.data.x.shape[1], self.graph.output_size
            bound = noise_bound(self.bands.sizes, channels, outputs, finite)
            if (whole := self.bounds.total.upper.value) is not None:  # all directions as one band
                bound = min(bound, noise_bound((sum(self.bands.sizes),), channels, outputs, [whole]))
        return {"responses": responses, "white_bound": None if bound is None else number(bound)}

    def save(self, folder: str | Path) -> None:
        """Write `spectrum.json` and a bundle for the whole network and for each band; an older spectrum is replaced.

        Raises:
            ResourceError: the disk is full; nothing is left behind.
            UsageError: the folder cannot be written, or holds something else.
        """
        with new_folder(Path(folder), MARKER) as place:
            for name, result in {} if self.bounds is None else self.bounds.results.items():
                write_bundle(result, place / name)
            text = json.dumps(self.to_json(), indent=1, allow_nan=False)
            (place / MARKER).write_text(text + "\n", encoding="utf-8")


def _proved(result: Result | None) -> dict[str, object]:
    """The proved side of a band or of the whole network."""
    if result is None:
        return {"proved": None, "status": "no-bound", "method": None, "reason": "no proof was attempted"}
    upper = result.upper
    own = "band" if result.problem.claim.directions is not None else "all directions"
    return {
        "proved": upper.value, "status": upper.status, "method": upper.method, "proof": upper.proof,
        "claim": own, "reason": upper.reason,
    }  # fmt: skip


def scores(model: Model, graph: Graph, labels: Tensor, notes: list[str]) -> Model:
    """The model with a score for each class: a single output with labels 0 and 1 is the log odds of 1."""
    if graph.output_size != 1 or int(labels.max()) > 1:
        return model
    remark = "the single output was taken as the log odds of label 1 against 0"
    if remark not in notes:
        notes.append(remark)

    def both(x: Tensor) -> Tensor:
        odds = model(x).reshape(len(x), 1)
        return torch.cat([torch.zeros_like(odds), odds], dim=1)

    return both


def _outputs(graph: Graph) -> list[int]:
    return [] if len(graph.output_shapes) != 1 else list(graph.output_shapes[0])


def _classifies(graph: Graph) -> bool:
    """Whether the output may be scores of classes: one output, whose entries are along one axis."""
    return len(graph.output_shapes) == 1 and sum(n > 1 for n in graph.output_shapes[0]) <= 1


def graph_model(graph: Graph, layout: Layout) -> Model:
    """The network as a function of (B, C, *grid), in float64, differentiable."""

    def model(x: Tensor) -> Tensor:
        return evaluate_graph(graph, layout.scatter(x.to(torch.float64)))

    return model


def spectrum(
    loaded: LoadedModel | Graph,
    data: Data,
    layout: Layout,
    bands: Bands,
    wishes: Wishes | None = None,
    *,
    progress: Progress = silent,
) -> Spectrum:
    """Measure and prove how a network's sensitivity is spread over frequencies.

    Args:
        loaded: what `lipscope.load` returned, or a graph.
        data: examples in the layout of its input.
        layout: where the grid is.
        bands: of that grid.
        wishes: what else is wanted; all but the heat map if None.
        progress: called with what is being done and the share that is done.

    Returns:
        The result. Interrupted by the user it holds what was reached, with `interrupted` set.

    Raises:
        UsageError: data or bands do not fit the input.
        InternalError: a measured gain is above its proved bound.
    """
    wishes = Wishes() if wishes is None else wishes
    graph = loaded if isinstance(loaded, Graph) else loaded.graph
    began = time.monotonic()
    model = graph_model(graph, layout)
    notes = list(data.notes) + ([] if isinstance(loaded, Graph) else list(loaded.warnings))
    try:
        result = Spectrum(graph, data, bands, sensitivity(model, data.x, bands, progress=progress))
    except Interrupted as stop:
        if not isinstance(stop.result, Sensitivity):
            raise
        notes.append(str(stop))
        result = Spectrum(graph, data.first(len(stop.result.gains)), bands, stop.result, interrupted=True)
    stages: tuple[Callable[[Spectrum], Spectrum], ...] = (
        lambda r: _bounded(r, loaded, layout, wishes, progress),
        lambda r: _depth(r, layout, wishes, progress),
        lambda r: _important(r, model, wishes, notes, progress),
        lambda r: _heated(r, model, wishes, notes, progress),
    )
    for stage in stages:
        if result.interrupted:
            break
        try:
            result = stage(result)
        except KeyboardInterrupt:
            result = replace(result, interrupted=True)
    return replace(result, notes=tuple(notes), seconds=time.monotonic() - began)


def _bounded(
    result: Spectrum, loaded: LoadedModel | Graph, layout: Layout, wishes: Wishes, progress: Progress
) -> Spectrum:
    if not wishes.bounds:
        return result
    source = () if isinstance(loaded, Graph) else loaded.agreement
    dtype = "float64" if isinstance(loaded, Graph) else loaded.dtype
    bounds = prove_band_bounds(
        result.graph,
        layout,
        result.bands,
        wishes.budget,
        wishes.method,
        agreement=source,
        dtype=dtype,
        progress=progress,
    )
    gains, whole = summaries(result.measured)
    for found, proof in zip((whole, *gains), (bounds.total, *bounds.bands), strict=True):
        if proof.found.value is not None and found.largest > proof.found.value * (1 + ROOM):
            raise InternalError(
                f"the proved bound {proof.found.value!r} of a band came out below the measured gain {found.largest!r}; "
                "please report this model: one of the two is wrong, and neither is returned"
            )
    if wishes.check and not bounds.interrupted:
        bounds = bounds.checked(progress)
    return replace(result, bounds=bounds, interrupted=bounds.interrupted)


def _depth(result: Spectrum, layout: Layout, wishes: Wishes, progress: Progress) -> Spectrum:
    if wishes.depth_samples < 1 or result.bands.rings == 0:
        return result
    progress("following bands through the layers", 0.0)
    found = transfer_matrices(result.graph, layout, result.bands, result.data.x[: wishes.depth_samples])
    return replace(result, layers=tuple(found))


def _important(result: Spectrum, model: Model, wishes: Wishes, notes: list[str], progress: Progress) -> Spectrum:
    if not wishes.importance or result.data.y is None:
        return result
    if not (result.data.y.is_floating_point() or _classifies(result.graph)):
        notes.append(
            f"no spectral importance: labels are classes, outputs of shape {_outputs(result.graph)} are no scores of classes"
        )
        return result
    from lipscope.frequency.importance import log_probability, negative_squared_error, spectral_shapley

    data = result.data
    assert data.y is not None
    targets, value = data.y, cast("Value", log_probability)
    if not targets.is_floating_point():
        model = scores(model, result.graph, targets, notes)
    else:
        with torch.no_grad():
            shape = model(data.x[:1]).shape[1:]
        if math.prod(shape) != targets[0].numel():
            notes.append(
                f"no spectral importance: the model has {math.prod(shape)} outputs, the data {targets[0].numel()} targets"
            )
            return result
        targets, value = targets.reshape(len(targets), *shape), negative_squared_error
        notes.append("importance is of minus the mean squared error: the data has targets, no labels")
    try:
        found = spectral_shapley(
            model, data.x, targets, result.bands, wishes.filler, value=value, progress=progress
        )  # fmt: skip
    except UsageError as error:
        notes.append(f"no spectral importance: {error}")
        return result
    except Interrupted as stop:
        notes.append(f"spectral importance: {stop}")
        return replace(result, importance=cast("SpectralImportance | None", stop.result), interrupted=True)
    return replace(result, importance=found)


def _heated(result: Spectrum, model: Model, wishes: Wishes, notes: list[str], progress: Progress) -> Spectrum:
    if wishes.heat_norm is None:
        return result
    from lipscope.frequency.heatmap import fourier_heatmap

    data = result.data
    labels = data.y if data.y is not None and not data.y.is_floating_point() and _classifies(result.graph) else None
    if labels is None:
        notes.append(
            "the heat map shows the change of the output: there are no labels and scores of classes for a share of errors"
        )
    else:
        model = scores(model, result.graph, labels, notes)
    wanted = wishes.heat_frequencies
    if wanted is not None and wanted >= len(distinct_frequencies(result.bands.grid)):
        wanted = None
    try:
        found = fourier_heatmap(
            model, data.x, labels, wishes.heat_norm, layer="" if labels is None else None, frequencies=wanted, progress=progress
        )  # fmt: skip
    except UsageError as error:
        notes.append(f"no Fourier heat map: {error}")
        return result
    except Interrupted as stop:
        notes.append(f"Fourier heat map: {stop}")
        return replace(result, heat_map=cast("HeatMap | None", stop.result), interrupted=True)
    return replace(result, heat_map=found)


def _heat_json(heat: HeatMap, bands: Bands) -> dict[str, object]:
    """The map with its mean over each band, whose errors count the drawing of frequencies."""
    mean, error = heat.profile(bands)
    return heat.to_json() | {"band_mean": numbers(mean), "band_se": numbers(error)}
