"""Data and layouts: what users bring, and what they are told when it does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lipscope.claims.errors import UsageError
from lipscope.frequency.data import load_data
from lipscope.frequency.layout import Layout, find_layout

GRAY, COLOUR = Layout((1, 4, 5), (1, 2)), Layout((3, 4, 5), (1, 2))


def stored(place: Path, **arrays: np.ndarray) -> Path:
    path = place / "data.npz"
    np.savez(path, **arrays)
    return path


# ------------------------------------------------------------------------------------------------------ layouts


@pytest.mark.parametrize(
    ("shape", "options", "grid", "channels"),
    [
        ((1, 28, 28), {}, (28, 28), 1),
        ((3, 8, 9), {}, (8, 9), 3),
        ((8, 9, 3), {"channels_last": True}, (8, 9), 3),
        ((6, 7), {}, (6, 7), 1),
        ((1, 100), {}, (100,), 1),
        ((2, 100), {"grid": (100,)}, (100,), 2),
        ((100,), {}, (100,), 1),
        ((60,), {"grid": (4, 5)}, (4, 5), 3),
        ((60,), {"grid": (4, 5), "channels_last": True}, (4, 5), 3),
        ((1, 1, 1), {}, (1, 1), 1),
        ((2, 4, 5, 6), {}, (4, 5, 6), 2),
    ],
)
def test_where_the_grid_is(shape: tuple[int, ...], options: dict[str, object], grid: object, channels: int) -> None:
    layout = find_layout(shape, **options)  # type: ignore[arg-type]
    assert (layout.grid, layout.channels) == (grid, channels)
    x = torch.arange(2.0 * layout.channels * int(np.prod(layout.grid))).reshape(2, -1)
    gathered = layout.gather(x)
    assert gathered.shape == (2, channels, *layout.grid)
    assert torch.equal(layout.scatter(gathered).reshape(2, -1), x)


def test_channels_stay_together() -> None:
    image = torch.arange(60.0).reshape(1, 4, 5, 3)
    assert torch.equal(Layout((4, 5, 3), (0, 1)).gather(image)[0, 2], image[0, :, :, 2])


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((28, 28, 3), {}, "--channels-last"),
        ((), {}, "single number"),
        ((2, 100), {}, "--grid 100 .* for a signal of 2 channels, or --grid 2,100"),
        ((60,), {"grid": (7,)}, "divides"),
        ((60,), {"grid": ()}, "grid"),
    ],
)
def test_layouts_that_are_not_clear(shape: tuple[int, ...], options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_layout(shape, **options)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- data


def test_digits() -> None:
    data = load_data("digits", Layout((1, 8, 8), (1, 2)), samples=50)
    assert data.x.shape == (50, 1, 8, 8) and data.x.dtype == torch.float64
    assert float(data.x.min()) == 0 and float(data.x.max()) == 1
    assert data.y is not None and set(data.y.tolist()) <= set(range(10))
    again = load_data("digits", Layout((1, 8, 8), (1, 2)), samples=50)
    other = load_data("digits", Layout((1, 8, 8), (1, 2)), samples=50, seed=1)
    assert torch.equal(data.x, again.x) and not torch.equal(data.x, other.x)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for i, place in enumerate(data.places):
        assert np.array_equal(data.x[i, 0].numpy() * 16, bunch.images[place]) and data.y[i] == bunch.target[place]


def test_names_of_arrays_and_arrangements(tmp_path: Path) -> None:
    first = np.random.default_rng(0).normal(size=(6, 3, 4, 5))
    for name, array in {"x": first, "images": np.moveaxis(first, 1, -1)}.items():
        data = load_data(stored(tmp_path, **{name: array}, labels=np.arange(6)), COLOUR, 6)
        assert np.array_equal(data.x.numpy(), first)
        assert any("channels last" in note for note in data.notes) == (name == "images")
        assert data.y is not None and data.y.tolist() == list(range(6))
    flat = load_data(stored(tmp_path, x=first.reshape(6, -1)), COLOUR, 6)
    assert np.array_equal(flat.x.numpy(), first) and flat.y is None and "row-major" in flat.notes[0]
    gray = load_data(stored(tmp_path, x=first[:, 0]), GRAY, 6)
    assert np.array_equal(gray.x.numpy()[:, 0], first[:, 0])
    last = load_data(stored(tmp_path, x=np.moveaxis(first, 1, -1)), Layout((4, 5, 3), (0, 1)), 6)
    assert np.array_equal(last.x.numpy(), first)


def test_bytes_are_scaled_and_other_numbers_are_not(tmp_path: Path) -> None:
    whole = np.full((3, 4, 5), 255)
    assert float(load_data(stored(tmp_path, x=whole.astype(np.uint8)), GRAY, 3).x.max()) == 1
    data = load_data(stored(tmp_path, x=whole.astype(np.int64)), GRAY, 3)
    assert (
        float(data.x.max()) == 255 and "whole numbers (int64) were taken as they are, from 255 to 255" in data.notes[0]
    )


def test_fewer_examples_and_constant_ones_are_noted(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(3, 4, 5))
    x[1] = 7
    data = load_data(stored(tmp_path, x=x, y=np.array([0.5, 1.5, 2.5])), GRAY, 200)
    assert len(data.x) == 3 and "200 examples were asked for" in data.notes[0] and "1 of 3" in data.notes[1]
    assert data.y is not None and data.y.dtype == torch.float64


def not_finite() -> np.ndarray:
    x = np.zeros((5, 4, 5))
    x[3, 0, 0] = np.nan
    return x


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": not_finite()}, "number 3"),
        ({"x": np.zeros((5, 4, 6))}, r"grid \[4, 5\]"),
        ({"z": np.zeros((5, 4, 5))}, "arrays z"),
        ({"x": np.zeros((5, 4, 5)), "y": np.zeros(4, dtype=int)}, "a label for each of 5"),
        ({"x": np.zeros((5, 4, 5)), "y": np.array(list("abcde"))}, "labels as integers"),
        ({"x": np.zeros((5, 4, 5)), "y": np.array([0, 1, -1, 0, 1])}, r"from 0 .* got whole numbers \[5\] from -1"),
        ({"x": np.zeros((5, 4, 5)), "y": np.eye(5, dtype=int)}, r"one-hot rows: their argmax"),
        ({"x": np.zeros((5, 4, 5)), "y": np.array([0.0, np.nan, 0, 0, 0])}, "with NaN or infinite entries"),
        ({"x": np.zeros((0, 4, 5))}, "got none"),
        ({"x": np.array(["a"])}, "array of numbers"),
    ],
)
def test_data_that_do_not_fit(arrays: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        load_data(stored(tmp_path, **arrays), GRAY, 5)


def test_labels_of_two_kinds_and_arrays_beside_them(tmp_path: Path) -> None:
    x, other = np.zeros((4, 4, 5)), np.array([{}, 1], dtype=object)
    data = load_data(stored(tmp_path, x=x, y=np.array([True, False, True, False]), other=other), GRAY, 4)
    assert data.y is not None and data.y.dtype == torch.int64 and data.y.tolist() == [1, 0, 1, 0]
    part = data.first(3)
    assert len(part.x) == 3 and part.places == (0, 1, 2) and part.y is not None and part.y.tolist() == [1, 0, 1]


def test_images_of_more_than_eight_bits_are_refused_and_lost_colours_told(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    colours = np.zeros((4, 5, 3), dtype=np.uint8)
    image.fromarray(colours).save(tmp_path / "a.png")
    image.fromarray(colours[..., 0]).save(tmp_path / "b.png")
    assert any("1 of 2 images have colours" in note for note in load_data(tmp_path, GRAY, 2).notes)
    assert not any("colours" in note for note in load_data(tmp_path, COLOUR, 2).notes)
    image.fromarray(np.full((4, 5), 300, dtype=np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(UsageError, match=r"8 bits a channel, got more in .*b\.png"):
        load_data(tmp_path, GRAY, 2)


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    for source, words in (
        ("nowhere", "digits, fashion-mnist"),
        (tmp_path / "bad.npz", "npz file"),
        (tmp_path, "images"),
    ):
        with pytest.raises(UsageError, match=words):
            load_data(source, GRAY)
    with pytest.raises(UsageError, match="at least one"):
        load_data("digits", GRAY, 0)


def test_folders_of_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, size=(4, 4, 5, 3)).astype(np.uint8)
    for i, array in enumerate(pixels):
        place = tmp_path / ("cat" if i < 2 else "dog")
        place.mkdir(exist_ok=True)
        image.fromarray(array).save(place / f"{i}.png")
    data = load_data(tmp_path, COLOUR, 4)
    assert np.array_equal(data.x.numpy(), np.moveaxis(pixels, -1, 1) / 255.0)
    assert data.y is not None and data.y.tolist() == [0, 0, 1, 1]
    assert load_data(tmp_path, GRAY, 4).x.shape == (4, 1, 4, 5)
    assert np.array_equal(load_data(tmp_path, Layout((4, 5, 3), (0, 1)), 4).x.numpy(), data.x.numpy())
    with pytest.raises(UsageError, match="4 x 5"):
        load_data(tmp_path, Layout((3, 5, 4), (1, 2)))
    (tmp_path / "cat" / "broken.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"broken\.png"):
        load_data(tmp_path, COLOUR)
