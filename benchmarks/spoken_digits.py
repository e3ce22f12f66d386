"""Spoken digits as data for networks: mel-frequency cepstral coefficients of the Free Spoken Digit Dataset.

    python benchmarks/spoken_digits.py ../shared/data/fsdd.zip out/

writes train.npz and test.npz (x float32 (N, 735): 49 frames of 15 coefficients; y int64 (N,)), split as the data set
says: recordings 0 to 4 of each speaker and digit are the test. Each recording is in train.npz COPIES times, all but the
first moved by up to 0.1 s, louder or softer and with noise; `groups` keeps them together when validation samples are
drawn. One second at 8 kHz, shorter ones with silence on both sides, longer ones cut; frames of 40 ms every 20 ms, 40
mel bands, 15 coefficients (of a DCT of type 2), each coefficient scaled by the mean and deviation of the training set.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, rfft
from scipy.io import wavfile

RATE, FRAMES, COEFFICIENTS, BANDS = 8000, 49, 15, 40
COPIES, SHIFT = 8, RATE // 10
WINDOW, STEP, SIZE = 320, 160, 512
Float = NDArray[np.float64]


def mel_filters() -> Float:
    """Triangular filters (BANDS, SIZE // 2 + 1), evenly spaced on the mel scale from 20 Hz to half the rate."""
    low, high = (2595.0 * np.log10(1.0 + f / 700.0) for f in (20.0, RATE / 2))
    edges = 700.0 * (10.0 ** (np.linspace(low, high, BANDS + 2) / 2595.0) - 1.0)
    frequency = np.arange(SIZE // 2 + 1) * RATE / SIZE
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    up, down = (frequency - left) / (centre - left), (right - frequency) / (right - centre)
    return np.maximum(0.0, np.minimum(up, down))


def one_second(samples: NDArray[np.int16]) -> Float:
    """The recording in the middle of RATE values, in -1..1."""
    wave = samples[:RATE].astype(np.float64) / 32768.0
    spare = RATE - len(wave)
    return np.pad(wave, (spare // 2, spare - spare // 2))


def varied(wave: Float, rng: np.random.Generator) -> Float:
    """Moved by up to 0.1 s, 0.5 to 2 times as loud, with white noise 20 to 50 dB below its mean power."""
    move = int(rng.integers(-SHIFT, SHIFT + 1))
    moved = np.pad(wave, (SHIFT, SHIFT))[SHIFT + move : SHIFT + move + RATE] * 2.0 ** rng.uniform(-1.0, 1.0)
    power = float(np.mean(moved**2)) * 10.0 ** rng.uniform(-5.0, -2.0)
    noisy: Float = moved + np.sqrt(power) * rng.standard_normal(RATE)
    return noisy


def features(wave: Float, filters: Float) -> Float:
    """MFCC (FRAMES, COEFFICIENTS) of RATE values."""
    starts = np.arange(FRAMES) * STEP
    frames = wave[starts[:, None] + np.arange(WINDOW)] * np.hanning(WINDOW)
    power = np.abs(rfft(frames, SIZE, axis=1)) ** 2
    cepstra: Float = dct(np.log(power @ filters.T + 1e-6), type=2, norm="ortho", axis=1)[:, :COEFFICIENTS]
    return cepstra


def read(path: Path) -> tuple[Float, NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """All samples: MFCC (N, FRAMES * COEFFICIENTS), digits (N,), whether they belong to the test, their recordings."""
    filters, rng = mel_filters(), np.random.default_rng(0)
    rows, digits, test, groups = [], [], [], []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".wav")):
            digit, _, index = Path(name).stem.split("_")
            rate, samples = wavfile.read(io.BytesIO(archive.read(name)))
            assert rate == RATE, f"{name}: {rate} Hz"
            wave, held = one_second(samples), int(index) < 5
            for copy in range(1 if held else COPIES):
                rows.append(features(varied(wave, rng) if copy else wave, filters).ravel())
                digits.append(int(digit))
                test.append(held)
                groups.append(len(groups) - copy)
    return np.array(rows), np.array(digits), np.array(test), np.array(groups)


def prepare(path: Path, folder: Path) -> tuple[Path, Path]:
    """Write train.npz and test.npz."""
    x, y, test, groups = read(path)
    frames = x.reshape(-1, FRAMES, COEFFICIENTS)
    mean, deviation = (f(frames[~test], axis=(0, 1)) for f in (np.mean, np.std))
    x = ((frames - mean) / deviation).reshape(len(x), -1).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.npz", folder / "test.npz"
    for target, chosen in zip(paths, (~test, test), strict=True):
        np.savez(target, x=x[chosen], y=y[chosen], groups=groups[chosen])
    return paths


if __name__ == "__main__":
    print(*prepare(Path(sys.argv[1]), Path(sys.argv[2])), sep="\n")
