"""What a folder of `lipscope spectrum` says, gathered from `spectrum.json` and from the bundles beside it.

Measured figures come from the file. Proved ones come from the bundles, with the status that the checker's verdict in them gives.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from lipscope.claims.errors import UsageError
from lipscope.report.documents import Field, read_bundle
from lipscope.report.facts import gather

MARKER = "spectrum.json"
SCHEMA = "lipscope-spectrum/1"


@dataclass(frozen=True)
class Proved:
    """The proved side of one row: an upper bound, None where there is none or it cannot be trusted, and its status.

    `plain` is whether it is the bound of all directions.
    """

    value: float | None
    status: str
    plain: bool = False


@dataclass(frozen=True)
class Row:
    """One band, or all of them (`low` and `high` None then)."""

    low: float | None
    high: float | None
    frequencies: int
    measured: float
    mean: float
    se: float | None
    share: float | None
    proved: Proved
    importance: float | None = None
    importance_se: float | None = None


@dataclass(frozen=True)
class Ring:
    """A point of the radial profile."""

    middle: float
    power: float
    se: float | None


@dataclass(frozen=True)
class HeatMap:
    """Errors under waves of each frequency; None where nothing was measured."""

    values: tuple[tuple[float | None, ...], ...]
    quantity: str
    norm: float
    images: int
    clean: float
    sampled: int
    distinct: int

    @property
    def comparable(self) -> tuple[str, float]:
        """Maps with the same of these can share a scale of colours."""
        return self.quantity, self.norm


@dataclass(frozen=True)
class Layer:
    """Where the energy of the input's bands is at one layer; band i of it ends at `high[i]`, in cycles per sample of its own grid."""

    name: str
    kind: str
    grid: tuple[int, ...]
    high: tuple[float, ...]
    energy: tuple[tuple[float, ...], ...]
    gain: tuple[float, ...]
    gain_se: tuple[float | None, ...]


@dataclass(frozen=True)
class Noise:
    """The response to noise whose variance falls with the frequency to the power `exponent`."""

    exponent: float
    response: float
    se: float | None


@dataclass(frozen=True)
class SpectrumFacts:
    """Everything that the page says about one spectrum."""

    id: str
    folder: Path
    source: str
    data: str
    samples: int
    grid: tuple[int, ...]
    kind: str
    rows: tuple[Row, ...]
    total: Row
    exact: bool
    profile: tuple[Ring, ...]
    heat: HeatMap | None
    layers: tuple[Layer, ...]
    noise: tuple[Noise, ...]
    white_bound: float | None
    notes: tuple[str, ...]
    interrupted: bool

    @property
    def plain(self) -> int:
        """How many bands have no smaller bound than that of all directions."""
        return sum(row.proved.plain and row.proved.value is not None for row in self.rows)

    @property
    def label(self) -> str:
        """How charts and tables call it: its folder tells two runs of one model apart."""
        return self.folder.name or self.source


def is_spectrum(folder: Path) -> bool:
    """Whether `lipscope spectrum -o` wrote the folder."""
    return (folder / MARKER).is_file()


def gather_spectrum(folder: Path, name: str) -> SpectrumFacts:
    """The facts of a folder.

    Args:
        folder: of `lipscope spectrum -o`.
        name: of its part of the page.

    Raises:
        UsageError: `spectrum.json` or one of its bundles does not have the form that it should.
    """
    document = _document(folder)
    gradient, detail = document["gradient"], document.get("importance_detail")
    shares = [_optional(f.value, f) for f in gradient["share"].items()]
    rows = tuple(_row(folder / f"band-{i}", row, shares[i]) for i, row in enumerate(document["bands"].items()))
    if detail is not None:
        values, errors = list(detail["values"].items()), list(detail["se"].items())
        rows = tuple(
            replace(row, importance=_optional(v.value, v), importance_se=_optional(e.value, e))
            for row, v, e in zip(rows, values, errors, strict=True)
        )
    data = document["data"]
    return SpectrumFacts(
        id=name, folder=folder, source=document["model"]["source"].text() or "unnamed model",
        data=data["source"].text(), samples=data["samples"].count(), grid=data["grid"].shape(),
        kind=document["kind"].text(), rows=rows, total=_row(folder / "total", document["total"], 1.0),
        exact=document["exact"].flag(), profile=tuple(_ring(ring) for ring in document["profile"].items()),
        heat=_heat(document.get("heatmap")), layers=tuple(_layer(layer) for layer in document["transfer"].items()),
        noise=tuple(_noise(found) for found in document["noise"]["responses"].items()),
        white_bound=_number(document["noise"], "white_bound"), notes=tuple(n.text() for n in document["notes"].items()),
        interrupted=document["interrupted"].flag(),
    )  # fmt: skip


def _document(folder: Path) -> Field:
    try:
        document = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"expected {MARKER} in {folder}: {error}; write it again with lipscope spectrum -o") from None
    field = Field(document, str(folder / MARKER))
    schema = field["schema"].text()
    if schema != SCHEMA:
        raise UsageError(f"expected schema {SCHEMA} in {folder / MARKER}, got {schema!r}; use a lipscope that knows it")
    return field


def _optional(value: object, field: Field) -> float | None:
    return None if value is None else field.number()


def _number(row: Field, key: str) -> float | None:
    found = row.get(key)
    return None if found is None else found.number()


def _row(bundle: Path, row: Field, share: float | None) -> Row:
    frequencies = row.get("frequencies")
    count = 0 if frequencies is None else frequencies.count()
    return Row(
        _number(row, "low"), _number(row, "high"), count, row["measured"].finite(), row["measured_mean"].finite(),
        _number(row, "measured_se"), share, _proved(bundle, row, count),
    )  # fmt: skip


def _proved(bundle: Path, row: Field, frequencies: int) -> Proved:
    """The bundle's bound if it is there and about this row; what is only said in `spectrum.json` is not certified."""
    said = _number(row, "proved")
    if not bundle.is_dir():
        status = row["status"].text()
        return Proved(said, "computed" if status == "certified" else status)
    facts = gather(read_bundle(bundle))
    narrow = facts.region.kind == "band"
    if facts.upper != said or (narrow and facts.region.inputs != frequencies):
        return Proved(None, "damaged")
    return Proved(facts.trusted_upper, facts.upper_status, not narrow)


def _ring(ring: Field) -> Ring:
    return Ring((ring["low"].finite() + ring["high"].finite()) / 2, ring["power"].finite(), _number(ring, "power_se"))


def _heat(field: Field | None) -> HeatMap | None:
    if field is None:
        return None
    nested = field["values"]
    rows = list(nested.items())
    if not rows or not isinstance(rows[0].value, list):  # a signal has one row
        rows = [nested]
    if any(isinstance(cell.value, list) for row in rows for cell in row.items()):
        return None  # a grid of three axes or more, of which there is no picture
    values = tuple(tuple(_optional(v.value, v) for v in row.items()) for row in rows)
    return HeatMap(
        values, field["quantity"].text(), field["norm"].finite(), field["images"].count(), field["clean"].finite(),
        field["sampled"].count(), field["distinct"].count(),
    )  # fmt: skip


def _layer(field: Field) -> Layer:
    errors = field["gain_se"]
    return Layer(
        field["layer"].text(), field["kind"].text(), field["grid"].shape(), _finite(field["high"]),
        tuple(_finite(row) for row in field["energy"].items()), _finite(field["gain"]),
        tuple(_optional(e.value, e) for e in errors.items()),
    )  # fmt: skip


def _noise(field: Field) -> Noise:
    return Noise(field["exponent"].finite(), field["response"].finite(), _number(field, "response_se"))


def _finite(field: Field) -> tuple[float, ...]:
    return tuple(entry.finite() for entry in field.items())
