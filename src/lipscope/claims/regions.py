"""Where a constant is claimed: everywhere, on a box, or on a ball."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from lipscope.claims.errors import UsageError
from lipscope.claims.norms import Norm

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Everywhere:
    """The whole input space."""

    kind = "everywhere"

    def box(self) -> None:
        """There is none."""
        return None


@dataclass(frozen=True, eq=False)
class Box:
    """All x with `lower <= x <= upper`, in raw input units, flattened row-major."""

    lower: Vector
    upper: Vector
    kind = "box"

    def __post_init__(self) -> None:
        _check_vector("the box's lower end", self.lower)
        _check_vector("the box's upper end", self.upper)
        if self.lower.shape != self.upper.shape:
            raise UsageError(f"expected ends of one length, got {self.lower.size} and {self.upper.size}")
        above = np.flatnonzero(self.lower > self.upper)
        if above.size:
            i = int(above[0])
            raise UsageError(
                f"expected lower <= upper in the box, got {self.lower[i]} > {self.upper[i]} at entry {i} "
                f"({above.size} entries are out of order)"
            )

    def box(self) -> Box:
        """The box itself."""
        return self

    @property
    def center(self) -> Vector:
        """A point in the middle of the box, inside it."""
        return np.clip(self.lower / 2 + self.upper / 2, self.lower, self.upper)


@dataclass(frozen=True, eq=False)
class Ball:
    """All x with `|x - center| <= radius` in the claim's norm, in raw input units, flattened row-major."""

    center: Vector
    radius: float
    kind = "ball"

    def __post_init__(self) -> None:
        _check_vector("the ball's center", self.center)
        if not (np.isfinite(self.radius) and self.radius >= 0):
            raise UsageError(f"expected a finite radius >= 0, got {self.radius}")
        if self.radius > FARTHEST / 2 or (np.abs(self.center) > FARTHEST / 2).any():
            raise UsageError(
                f"expected a ball within {FARTHEST:g} of 0, got one of radius {self.radius:g}; everywhere has no ends"
            )

    def box(self) -> Box:
        """The smallest box of float64 numbers around the ball (the same for every norm), rounded outward."""
        low, high = self.center - self.radius, self.center + self.radius
        return Box(np.nextafter(low, -np.inf), np.nextafter(high, np.inf))


Region = Everywhere | Box | Ball


FARTHEST = 1e300
"""Where regions end: sums and differences of their points stay within float64."""


def _check_vector(what: str, vector: Vector) -> None:
    if vector.ndim != 1 or vector.dtype != np.float64:
        raise UsageError(f"expected {what} as a flat float64 vector, got {vector.dtype} of shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise UsageError(f"expected {what} to be finite, got {int((~np.isfinite(vector)).sum())} entries that are not")
    if (np.abs(vector) > FARTHEST).any():
        raise UsageError(
            f"expected {what} within {FARTHEST:g} of 0, got {np.abs(vector).max():g}; everywhere has no ends"
        )


def check_size(region: Region, size: int) -> None:
    """Raise `UsageError` unless the region lies in a space of `size` dimensions."""
    vector = None if isinstance(region, Everywhere) else region.center
    if vector is not None and vector.size != size:
        raise UsageError(
            f"expected a {region.kind} with {size} entries, one per number of the model's input, got {vector.size}"
        )


def parse_region(text: str, size: int, norm: Norm) -> Region:
    """The region that a command line names.

    Args:
        text: `everywhere`, `box:LO,HI` (the same two numbers for all entries), `box:FILE.npz` with arrays `lower`
            and `upper`, or `ball:FILE.npz` with `center`, `radius` and, if it is there, `norm`.
        size: how many numbers the model's input has.
        norm: the claim's norm, which a ball is measured in.

    Raises:
        UsageError: the text, the file or its arrays do not make a region of that size.
    """
    kind, _, rest = text.partition(":")
    makers: dict[str, Callable[[], Region]] = {
        "everywhere": Everywhere,
        "box": lambda: _parse_box(rest, size),
        "ball": lambda: _parse_ball(rest, norm),
    }
    if kind not in makers or (kind == "everywhere") != (not rest):
        raise UsageError(f"expected everywhere, box:LO,HI, box:FILE.npz or ball:FILE.npz as region, got {text!r}")
    region = makers[kind]()
    check_size(region, size)
    return region


def _parse_box(rest: str, size: int) -> Box:
    if rest.count(",") == 1 and not rest.endswith(".npz"):
        try:
            low, high = (float(part) for part in rest.split(","))
        except ValueError:
            raise UsageError(f"expected two numbers in box:LO,HI, got {rest!r}") from None
        return Box(np.full(size, low), np.full(size, high))
    arrays = _read_npz(rest, ("lower", "upper"))
    return Box(_vector(arrays["lower"]), _vector(arrays["upper"]))


def _parse_ball(rest: str, norm: Norm) -> Ball:
    arrays = _read_npz(rest, ("center", "radius"))
    named = str(arrays["norm"]) if "norm" in arrays else norm
    if named != norm:
        raise UsageError(f"expected a ball in the claim's norm {norm}, got one in {named} from {rest}")
    if np.size(arrays["radius"]) != 1:
        raise UsageError(f"expected one radius in {rest}, got an array of shape {np.shape(arrays['radius'])}")
    return Ball(_vector(arrays["center"]), float(_vector(arrays["radius"])[0]))


def _vector(array: NDArray[np.generic]) -> Vector:
    if array.dtype.kind not in "fiu":
        raise UsageError(f"expected numbers in a region's file, got dtype {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.float64).reshape(-1)


def _read_npz(path: str, names: tuple[str, ...]) -> dict[str, NDArray[np.generic]]:
    wanted = f"an .npz file with arrays {' and '.join(names)}"
    try:
        with Path(path).open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise UsageError(f"expected {wanted}, got a single array in {path}")
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, BadZipFile, EOFError) as error:
        raise UsageError(f"expected {wanted} at {path!r}: {error}") from None
    missing = [name for name in names if name not in arrays]
    if missing:
        raise UsageError(f"expected arrays {', '.join(names)} in {path}, got {', '.join(arrays) or 'none'}")
    return arrays
