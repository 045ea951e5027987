"""Log-mel energies of 16 kHz audio as AlgoPerf has them, and SpecAugment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from workloads.layers import cached_tensors, constant

SAMPLE_RATE = 16000
FRAME, HOP, FFT = 400, 160, 512  # samples: 25 ms every 10 ms
PREEMPHASIS = 0.97
MEL_EDGES = (125.0, 7600.0)  # Hz
MEL_FLOOR = 1e-5
# Mean and standard deviation of each of LibriSpeech's 80 log-mel bins, AlgoPerf's values to two decimals
# (librispeech_pytorch/preprocessor.py).
# fmt: off
MEL_MEAN = (
    -7.60, -7.12, -6.89, -6.87, -6.97, -7.11, -6.95, -6.78, -6.62, -6.49, -6.41, -6.39, -6.42, -6.40, -6.52, -6.71,
    -6.85, -6.99, -6.92, -7.15, -7.20, -7.05, -7.31, -7.12, -7.30, -7.12, -7.24, -7.17, -7.10, -7.09, -6.98, -6.88,
    -6.76, -6.63, -6.51, -6.42, -6.36, -6.32, -6.27, -6.25, -6.28, -6.19, -6.25, -6.15, -6.09, -6.02, -5.93, -5.85,
    -5.82, -5.81, -5.81, -5.77, -5.75, -5.77, -5.78, -5.78, -5.80, -5.80, -5.80, -5.80, -5.82, -5.88, -5.97, -6.04,
    -6.13, -6.23, -6.32, -6.39, -6.49, -6.55, -6.61, -6.65, -6.67, -6.67, -6.68, -6.70, -6.75, -6.79, -6.86, -6.94,
)
MEL_STD = (
    3.44, 3.60, 3.70, 3.74, 3.75, 3.69, 3.69, 3.76, 3.84, 3.90, 3.93, 3.93, 3.91, 3.90, 3.87, 3.82,
    3.76, 3.71, 3.70, 3.60, 3.55, 3.55, 3.45, 3.47, 3.41, 3.44, 3.41, 3.42, 3.43, 3.42, 3.43, 3.44,
    3.46, 3.48, 3.50, 3.50, 3.50, 3.50, 3.49, 3.48, 3.46, 3.46, 3.46, 3.48, 3.50, 3.53, 3.57, 3.59,
    3.60, 3.59, 3.59, 3.58, 3.58, 3.59, 3.58, 3.58, 3.59, 3.59, 3.59, 3.59, 3.59, 3.59, 3.59, 3.59,
    3.58, 3.57, 3.56, 3.55, 3.55, 3.55, 3.54, 3.53, 3.50, 3.49, 3.49, 3.47, 3.46, 3.44, 3.43, 3.43,
)
# fmt: on


def mel_triangles(hertz: tuple[float, float], bins: int, rate: int, fft: int) -> NDArray[np.float64]:
    """(fft / 2 + 1, bins) filters, evenly spaced and linear in mel = 1127 ln(1 + f / 700 Hz); bin 0 counts for none."""
    low, high = (1127 * np.log1p(edge / 700) for edge in hertz)
    edges = np.linspace(low, high, bins + 2)
    mel = 1127 * np.log1p(np.linspace(0, rate / 2, fft // 2 + 1)[:, None] / 700)
    rising = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    weights: NDArray[np.float64] = np.maximum(np.minimum(rising, falling), 0)
    return weights


@cached_tensors
def mel_weights(device: torch.device) -> Tensor:
    """Those of LibriSpeech, (FFT / 2 + 1, 80)."""
    weights = mel_triangles(MEL_EDGES, len(MEL_MEAN), SAMPLE_RATE, FFT)
    return torch.tensor(weights, dtype=torch.float32, device=device)


def log_mel(audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Normalized log-mel energies of 25 ms every 10 ms, pre-emphasized inside each frame, periodic Hann window.

    audio: (batch, samples) int16, lengths: (batch,) -> (batch, frames, 80) float32, numbers of frames. A frame is
    valid when its first sample is. Source: AlgoPerf's MelFilterbankFrontend.
    """
    with torch.autocast(audio.device.type, enabled=False):  # half precision has no place under a logarithm
        frames = (audio.float() / 2**15).unfold(1, FRAME + 1, HOP)[..., :FRAME]
        # the window is 0 at a frame's first sample, so that whatever stands there is silent
        emphasized = F.pad(frames[..., 1:] - PREEMPHASIS * frames[..., :-1], (1, 0))
        window = torch.hann_window(FRAME, device=audio.device)
        power = torch.fft.rfft(emphasized * window, FFT).abs().square()
        energies = (power @ mel_weights(audio.device)).clamp(min=MEL_FLOOR).log()
        mean, std = (constant(values, audio.device) for values in (MEL_MEAN, MEL_STD))
        lengths = ((lengths + HOP - 1) // HOP).clamp(max=energies.shape[1])
        return (energies - mean) / std, lengths


@dataclass(frozen=True)
class SpecAugment:
    """Hides bands of frequency and of time. Source: Park et al. 2019, time bands relative to the utterance.

    A frequency band is narrower than `max_bins`, a time band than `max_time_ratio` of the utterance.
    """

    num_frequency_masks: int
    max_bins: int
    num_time_masks: int
    max_time_ratio: float

    def kept(
        self, random: np.random.Generator, lengths: NDArray[np.int64], num_frames: int, bins: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """What stays visible: (batch, num_frames) and (batch, bins)."""
        frames = _outside_bands(random, lengths, self.max_time_ratio * lengths, self.num_time_masks, num_frames)
        everywhere, widest = np.full((2, len(lengths)), [[bins], [self.max_bins]])
        return frames, _outside_bands(random, everywhere, widest, self.num_frequency_masks, bins)


def _outside_bands(
    random: np.random.Generator, ranges: NDArray[Any], max_sizes: NDArray[Any], count: int, size: int
) -> NDArray[np.bool_]:
    sizes = (random.random((len(ranges), count)) * max_sizes[:, None]).astype(np.int64)
    starts = (random.random((len(ranges), count)) * (ranges[:, None] - sizes + 1)).astype(np.int64)
    position = np.arange(size)
    inside = (position >= starts[..., None]) & (position < (starts + sizes)[..., None])
    outside: NDArray[np.bool_] = ~inside.any(1)
    return outside
