"""Frequencies: how a network's sensitivity is spread over the spectrum of its inputs.

Names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lipscope.frequency.band_bounds import BandBounds, prove_band_bounds
    from lipscope.frequency.band_gain import Gain, band_gains
    from lipscope.frequency.bands import Bands, band_masks, custom_bands
    from lipscope.frequency.data import Data, load_data
    from lipscope.frequency.gradient_spectrum import GradientSpectrum, loss_gradient_power
    from lipscope.frequency.heatmap import HeatMap, fourier_heatmap
    from lipscope.frequency.importance import SpectralImportance, shapley, signed_score, spectral_shapley
    from lipscope.frequency.jacobian import Sensitivity, sensitivity
    from lipscope.frequency.layout import Layout, find_layout
    from lipscope.frequency.quantities import AmplitudeRatio, PeakError, ResidualSplit
    from lipscope.frequency.residual import Split, grid_split, scattered_split
    from lipscope.frequency.spectral_bias import (
        FirstPassage,
        amplitude_ratio,
        coefficients,
        first_passage,
        peak_error,
        target_peaks,
    )
    from lipscope.frequency.transfer import (
        HarmonicBound,
        Transfer,
        harmonic_bound,
        harmonics,
        noise_response,
        transfer_matrices,
    )

_HOMES = {
    "lipscope.frequency.band_bounds": ("BandBounds", "prove_band_bounds"),
    "lipscope.frequency.band_gain": ("Gain", "band_gains"),
    "lipscope.frequency.data": ("Data", "load_data"),
    "lipscope.frequency.gradient_spectrum": ("GradientSpectrum", "loss_gradient_power"),
    "lipscope.frequency.jacobian": ("Sensitivity", "sensitivity"),
    "lipscope.frequency.layout": ("Layout", "find_layout"),
    "lipscope.frequency.transfer": ("HarmonicBound", "Transfer", "harmonic_bound", "harmonics", "noise_response", "transfer_matrices"),
    "lipscope.frequency.bands": ("Bands", "band_masks", "custom_bands"),
    "lipscope.frequency.heatmap": ("HeatMap", "fourier_heatmap"),
    "lipscope.frequency.importance": ("SpectralImportance", "shapley", "signed_score", "spectral_shapley"),
    "lipscope.frequency.quantities": ("AmplitudeRatio", "PeakError", "ResidualSplit"),
    "lipscope.frequency.residual": ("Split", "grid_split", "scattered_split"),
    "lipscope.frequency.spectral_bias": (
        "FirstPassage", "amplitude_ratio", "coefficients", "first_passage", "peak_error", "target_peaks",
    ),
}  # fmt: skip

__all__ = [
    "AmplitudeRatio", "BandBounds", "Bands", "Data", "FirstPassage", "Gain", "GradientSpectrum", "HarmonicBound",
    "HeatMap", "Layout", "PeakError", "ResidualSplit", "Sensitivity", "SpectralImportance", "Split", "Transfer",
    "amplitude_ratio", "band_gains", "band_masks", "coefficients", "custom_bands", "find_layout", "first_passage",
    "fourier_heatmap", "grid_split", "harmonic_bound", "harmonics", "load_data", "loss_gradient_power",
    "noise_response", "peak_error", "prove_band_bounds", "scattered_split", "sensitivity", "shapley", "signed_score",
    "spectral_shapley", "target_peaks", "transfer_matrices",
]  # fmt: skip


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'lipscope.frequency' has no attribute {name!r}")
