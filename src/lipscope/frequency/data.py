"""Data for measurements: what a user names, in the layout of the model's input."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipscope.claims.errors import UsageError
from lipscope.frequency.fashion import FASHION, fashion_mnist
from lipscope.frequency.layout import Layout

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
"""Files of a folder that are taken for images."""

Array = NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class Data:
    """Examples to measure at.

    Attributes:
        x: (n, channels, *grid), float64, in the model's raw input units.
        y: labels (n,) int64, or targets (n, ...) float64; None if there are none.
        source: what the user named.
        places: where each example stands in the source, counted from 0.
        notes: what was done to the data, and what a reader should know.
    """

    x: Tensor
    y: Tensor | None
    source: str
    places: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def first(self, count: int) -> Data:
        """The first examples alone."""
        y = None if self.y is None else self.y[:count]
        return replace(self, x=self.x[:count], y=y, places=self.places[:count])


def load_data(source: str | Path, layout: Layout, samples: int = 200, seed: int = 0) -> Data:
    """Examples from `digits`, `fashion-mnist`, a folder of images, or an .npz file with arrays x (or images) and y (or labels).

    Bytes are divided by 255, so that images are in [0, 1]; other numbers stay as they are. Examples are chosen at random
    if there are more than asked for; if there are fewer, all are taken and a note says so. Labels of a folder are the names of its
    subfolders in alphabetical order.

    Args:
        source: as above.
        layout: of the model's input.
        samples: how many examples.
        seed: of the choice.

    Raises:
        UsageError: the source cannot be read, does not fit the model's input, or has numbers that are not finite.
    """
    if samples < 1:
        raise UsageError(f"expected at least one sample, got {samples}")
    notes: list[str] = []
    images, labels = _read(str(source), layout, notes)
    if len(images) == 0:
        raise UsageError(f"expected examples in {source}, got none")
    if labels is not None and len(labels) != len(images):
        raise UsageError(f"expected a label for each of {len(images)} examples in {source}, got {len(labels)}")
    places = np.arange(len(images))
    if len(images) > samples:
        places = np.sort(np.random.default_rng(seed).permutation(len(images))[:samples])
    elif len(images) < samples:
        notes.append(f"{samples} examples were asked for, {source} has {len(images)}: all were taken")
    x = _arranged(np.asarray(images)[places], layout, str(source), notes)
    y = None if labels is None else _targets(np.asarray(labels)[places], str(source))
    bad = (~x.isfinite()).flatten(1).any(dim=1)
    if bool(bad.any()):
        first = int(places[int(bad.nonzero()[0])])
        raise UsageError(
            f"expected finite numbers, got NaN or infinite ones in {int(bad.sum())} examples of {source}, the first is number {first}"
        )
    flat = x.flatten(1)
    same = int((flat == flat[:, :1]).all(dim=1).sum())
    if same and flat.shape[1] > 1:
        notes.append(f"{same} of {len(x)} examples are constant")
    return Data(x, y, str(source), tuple(int(p) for p in places), tuple(notes))


def _read(source: str, layout: Layout, notes: list[str]) -> tuple[Array, Array | None]:
    if source == "digits":
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return bunch.images / 16.0, bunch.target
    if source == "fashion-mnist":
        return _fashion_mnist()
    path = Path(source)
    if path.is_dir():
        return _folder(path, layout, notes)
    if path.suffix == ".npz" and path.is_file():
        return _npz(path)
    raise UsageError(f"expected digits, fashion-mnist, a folder of images or an .npz file as data, got {source!r}")


def _fashion_mnist() -> tuple[Array, Array]:
    """The test images of Debian's package where it is installed, else all images from OpenML."""
    if FASHION.is_dir():
        images, labels = fashion_mnist("t10k")
        return images / 255.0, labels.astype(np.int64)
    from sklearn.datasets import fetch_openml

    try:
        bunch = fetch_openml("Fashion-MNIST", version=1, as_frame=False, parser="liac-arff")
    except OSError as error:
        raise UsageError(
            f"expected Fashion-MNIST from Debian's package dataset-fashion-mnist or from OpenML (scikit-learn keeps a copy after "
            f"the first time), got {error}; give an .npz file with arrays x and y instead"
        ) from None
    return (bunch.data / 255.0).reshape(-1, 28, 28), bunch.target.astype(np.int64)


def _npz(path: Path) -> tuple[Array, Array | None]:
    wanted = "an .npz file with an array x (or images), and y (or labels) if there are labels,"
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            names = list(file.files)
            arrays = {name: file[name] for name in ("x", "images", "y", "labels") if name in names}
    except (OSError, ValueError, BadZipFile, EOFError, AttributeError) as error:
        raise UsageError(f"expected {wanted} at {path}: {error}") from None
    x = arrays.get("x", arrays.get("images"))
    if x is None:
        raise UsageError(f"expected {wanted} at {path}, got arrays {', '.join(names) or 'none'}")
    if x.dtype.kind not in "fiub" or x.ndim < 1:
        raise UsageError(f"expected examples as an array of numbers (n, ...) in {path}, got {x.dtype} {list(x.shape)}")
    return x, arrays.get("y", arrays.get("labels"))


def _folder(path: Path, layout: Layout, notes: list[str]) -> tuple[Array, Array | None]:
    try:
        from PIL import Image
    except ImportError:
        raise UsageError(
            "expected Pillow to read a folder of images, it is not installed; pip install pillow, or give an .npz file"
        ) from None
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise UsageError(f"expected images ({', '.join(SUFFIXES)}) in {path}, got none")
    if len(layout.grid) != 2 or layout.channels not in (1, 3, 4):
        raise UsageError(
            f"expected a model of images with 1, 3 or 4 channels for a folder of images, got an input of {layout.channels} "
            f"channels on a grid {list(layout.grid)}; give an .npz file"
        )
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[layout.channels]
    images, grey = [], 0
    for file in files:
        try:
            with Image.open(file) as image:
                own, pixels = image.mode, np.asarray(image.convert(mode))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise UsageError(f"expected an image in {file}: {error}") from None
        if own.startswith(("I", "F")):
            raise UsageError(
                f"expected images of 8 bits a channel, got more in {file} (mode {own}), which would be cut off at 255; scale them "
                "as your model's pipeline does, and give an .npz file"
            )
        grey += mode == "L" and own not in ("1", "L", "LA")
        if pixels.shape[:2] != layout.grid:
            raise UsageError(
                f"expected images of {layout.grid[0]} x {layout.grid[1]} pixels (rows x columns), got {pixels.shape[0]} x "
                f"{pixels.shape[1]} in {file}; resize them as your model's pipeline does"
            )
        images.append(pixels)
    if grey:
        notes.append(f"{grey} of {len(files)} images have colours, the model one channel: they were made grey")
    folders = sorted({file.parent for file in files})
    labels = np.array([folders.index(file.parent) for file in files]) if len(folders) > 1 else None
    stacked = np.stack(images)
    return (stacked[..., np.newaxis] if stacked.ndim == 3 else stacked), labels


def _arranged(images: Array, layout: Layout, source: str, notes: list[str]) -> Tensor:
    """Examples as (n, channels, *grid)."""
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    if scale != 1:
        notes.append("bytes were divided by 255")
    elif images.dtype.kind in "iu":
        notes.append(
            f"whole numbers ({images.dtype}) were taken as they are, from {images.min()} to {images.max()}; only bytes are divided by 255"
        )
    x = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float64) / scale)
    shape, grid, channels = tuple(x.shape[1:]), layout.grid, layout.channels
    if shape == layout.shape:
        return layout.gather(x)
    if shape in ((channels, *grid), grid if channels == 1 else None):
        return x.reshape(len(x), channels, *grid)
    if shape == (*grid, channels):
        if channels > 1:
            notes.append("the data has its channels last, the model does not: they were moved")
        return x.movedim(-1, 1)
    if shape == (math.prod(layout.shape),):
        notes.append("flat examples were taken row-major in the shape of the model's input")
        return layout.gather(x)
    raise UsageError(
        f"expected examples with {channels} channels on a grid {list(grid)}, such as {[channels, *grid]}, got {list(shape)} in "
        f"{source}; the data must be on the grid of the model's input"
    )


def _targets(labels: Array, source: str) -> Tensor:
    if labels.dtype.kind in "iub":
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1 or int(labels.min()) < 0:
            raise UsageError(
                f"expected one label from 0 for each example in {source}, got whole numbers {list(labels.shape)} from "
                f"{labels.min()}; count classes from 0 (one-hot rows: their argmax), store targets of a regression as floats"
            )
        return torch.from_numpy(labels.astype(np.int64))
    if labels.dtype.kind != "f" or not np.isfinite(labels).all():
        raise UsageError(
            f"expected labels as integers from 0 or finite targets in {source}, got {labels.dtype}"
            + (" with NaN or infinite entries" if labels.dtype.kind == "f" else "; number the classes from 0")
        )
    return torch.from_numpy(labels.astype(np.float64))
