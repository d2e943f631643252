"""Weights from a file into a module. Nothing in a file is executed."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lipscope.claims.errors import ModelError

_KEYS = ("state_dict", "model_state_dict", "model")


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Put the weights of a `.safetensors`, `.pt` or `.pth` file into a module, all of them and no others.

    Raises:
        ModelError: the file cannot be read without executing what is in it, or its names or shapes are not the module's.
    """
    weights = read_weights(Path(path))
    expected = module.state_dict()
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unexpected:
        raise ModelError(
            f"expected the weights of {type(module).__name__} in {path}; missing: {_listed(missing)}; unexpected: "
            f"{_listed(unexpected)}; use the factory that the weights were trained with"
        )
    wrong = [
        f"{name}: expected {list(expected[name].shape)}, got {list(weights[name].shape)}"
        for name in expected
        if isinstance(expected[name], Tensor) and expected[name].shape != weights[name].shape
    ]
    if wrong:
        raise ModelError(f"the shapes of {len(wrong)} weights in {path} differ from the module's: {_listed(wrong)}")
    narrowed = [
        name
        for name, value in weights.items()
        if value.is_floating_point() and torch.promote_types(value.dtype, expected[name].dtype) != expected[name].dtype
    ]
    if narrowed:
        raise ModelError(
            f"expected weights that the module's type holds exactly, got {weights[narrowed[0]].dtype} for {_listed(narrowed)}; "
            "call .double() in the factory"
        )
    module.load_state_dict(weights)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:10]) or "none"
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        ModelError: there is no such file, it is cut off, or it holds more than tensors.
    """
    if not path.is_file():
        raise ModelError(f"expected a file of weights at {path}, found none; check the path")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        return _named_tensors(_pickled(path), path)
    raise ModelError(f"expected a .safetensors, .pt or .pth file of weights, got {path}")


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"cannot read {path} as safetensors: {error}; is the file cut off?") from error


def _pickled(path: Path) -> Any:
    if is_torchscript(path):
        raise ModelError(
            f"expected a state dict in {path}, got a TorchScript archive; save the weights with "
            "torch.save(model.state_dict(), file), or the model with torch.export.save"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"expected a state dict in {path}, got other Python objects, which are not loaded because that would run code; "
            "save the weights with torch.save(model.state_dict(), file) or as safetensors, or export the model with "
            "torch.export.save(torch.export.export(model, (example,)), 'model.pt2')"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ModelError(
            f"cannot read {path}: {str(error).splitlines()[0] if str(error) else error!r}; is the file cut off?"
        ) from error


def is_torchscript(path: Path) -> bool:
    """Whether a file is a zip archive with compiled code in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name or name.startswith("code/") for name in archive.namelist())


def _named_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """A state dict, alone or under the name that training scripts give it."""
    if isinstance(content, Mapping):
        for key in _KEYS:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(
            f"expected a state dict (names and tensors) in {path}, got {type(content).__name__}; save model.state_dict()"
        )
    return {str(name): value for name, value in content.items()}
