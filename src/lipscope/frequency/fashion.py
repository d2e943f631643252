"""Fashion-MNIST from the files of Debian's package dataset-fashion-mnist."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipscope.claims.errors import UsageError

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where the package puts them."""

Bytes = NDArray[np.uint8]


def fashion_mnist(part: str) -> tuple[Bytes, Bytes]:
    """Images (n, 28, 28) and labels (n,) of the part `train` (60000) or `t10k` (10000).

    Raises:
        UsageError: the files are not there.
    """
    return _idx(f"{part}-images-idx3-ubyte"), _idx(f"{part}-labels-idx1-ubyte")


def _idx(name: str) -> Bytes:
    """A file of the MNIST family: magic number with the count of axes, their lengths, bytes."""
    try:
        raw = gzip.decompress((FASHION / f"{name}.gz").read_bytes())
    except OSError as error:
        raise UsageError(
            f"expected the files of Fashion-MNIST in {FASHION}, where Debian's package dataset-fashion-mnist puts them, got {error}"
        ) from None
    axes = raw[3]
    shape = np.frombuffer(raw, dtype=">u4", count=axes, offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * axes).reshape(tuple(int(n) for n in shape)).copy()
