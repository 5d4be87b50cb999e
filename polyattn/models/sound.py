"""Sound as Whisper hears it: a wave file as numbers, thirty seconds of them as a log-mel spectrogram, on NumPy."""

from __future__ import annotations

import os
import wave
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from polyattn.arrays import is_array
from polyattn.calls import shown

__all__ = ["BANDS", "FRAMES", "RATE", "SAMPLES", "log_mel", "read_wave", "recording"]

Floats = np.ndarray[Any, np.dtype[np.float64]]
_WHO = "polyattn.models.sound"
RATE, SAMPLES = 16_000, 480_000  # a second, and the thirty that the model looks at
WINDOW, HOP = 400, 160
FRAMES, BANDS = SAMPLES // HOP, 80


def read_wave(path: str | os.PathLike[str]) -> Floats:
    """The samples (n,) of a wave file, between -1 and 1; ValueError unless it is of 16 bits, 16 kHz and one channel."""
    try:
        with wave.open(os.fspath(path), "rb") as file:
            form = (file.getnchannels(), 8 * file.getsampwidth(), file.getframerate())
            content = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(
            f"{_WHO}.read_wave: expected a wave file, got {Path(path).name!r}, of which the reader says: "
            f"{error or type(error).__name__}; convert it, as with ffmpeg -i FILE -ac 1 -ar 16000 -c:a pcm_s16le NEW.wav"
        ) from error
    if form != (1, 16, RATE):
        raise ValueError(
            f"{_WHO}.read_wave: expected 1 channel of 16 bits at {RATE} Hz, got {form[0]} of {form[1]} at {form[2]} Hz; "
            "convert it, as with ffmpeg -i FILE -ac 1 -ar 16000 -c:a pcm_s16le NEW.wav"
        )
    return np.frombuffer(content, "<i2").astype(np.float64) / 2**15


def log_mel(samples: Floats) -> Floats:
    """How loud each of 80 bands is in each of 3000 frames of 10 ms: (n,) -> (3000, 80), n at most 480 000.

        power = |FFT(hann * frame)|^2,   x = log10(max(power @ bands, 1e-10)),   (max(x, max(x) - 8) + 4) / 4

    What is shorter than thirty seconds is followed by silence. Frames are 25 ms long, and the first is centred on the
    first sample. Source: Radford 2022, arXiv:2212.04356, section 2.2; the last two steps as in its authors' code.
    """
    if not is_array(samples) or samples.ndim != 1 or not 0 < len(samples) <= SAMPLES:
        raise ValueError(
            f"{_WHO}.log_mel: expected 1 to {SAMPLES} samples, thirty seconds, in one axis, got {shown(samples)}; cut it "
            "into pieces"
        )
    whole = np.pad(np.asarray(samples, np.float64), (0, SAMPLES - len(samples)))
    whole = np.pad(whole, WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(whole, WINDOW)[::HOP][:FRAMES]
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    x = np.log10(np.maximum(power @ bands(), 1e-10))
    heard: Floats = (np.maximum(x, x.max() - 8.0) + 4.0) / 4.0
    return heard


@cache
def bands() -> Floats:
    """Triangles (201, 80) over the frequencies, equally far apart in mels and each of area 1 (Slaney 1998)."""
    edges = _hertz(np.linspace(0.0, _mel(RATE / 2.0), BANDS + 2))
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    f = np.linspace(0.0, RATE / 2.0, WINDOW // 2 + 1)[:, None]
    triangle = np.minimum((f - low) / (middle - low), (high - f) / (high - middle))
    found: Floats = np.maximum(triangle, 0.0) * 2.0 / (high - low)
    return found


#: Slaney's mels: 3 for 200 Hz up to 1000 Hz, then 27 for a factor of 6.4.
_STRAIGHT, _STEP = 15.0, np.log(6.4) / 27.0


def _mel(hertz: float) -> float:
    """Of a frequency above 1000 Hz."""
    return float(_STRAIGHT + np.log(hertz / 1000.0) / _STEP)


def _hertz(mel: Floats) -> Floats:
    return np.where(mel < _STRAIGHT, mel * 200.0 / 3.0, 1000.0 * np.exp((mel - _STRAIGHT) * _STEP))


def recording() -> Path:
    """Ten seconds of speech inside an installed package, which itself is never imported."""
    spec = find_spec("moonshine_onnx")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"{_WHO}: expected the package useful-moonshine-onnx, which carries a recording, got an environment without it; "
            "pip install --no-deps useful-moonshine-onnx (what it requires is not needed)"
        )
    return Path(spec.origin).parent / "assets" / "beckett.wav"
