"""C tables for mfcc.c, and recordings for a firmware: written from the definitions that the training's features have.

python examples/kws_mfcc/mfcc_tables.py ../shared/data/fsdd.zip features/ tables/ --count 40
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.io import wavfile

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from spoken_digits import BANDS, COEFFICIENTS, RATE, SIZE, WINDOW, features, mel_filters, one_second

Float = NDArray[np.float64]


class Spoken(NamedTuple):
    """A recording: name of its file, the digit that is said, int16 samples at RATE."""

    name: str
    digit: int
    samples: NDArray[np.int16]


class Norm(NamedTuple):
    """Mean and standard deviation of each coefficient over the training's frames, (COEFFICIENTS,)."""

    mean: Float
    deviation: Float


def read_recordings(path: Path, held: bool) -> Iterable[Spoken]:
    """All of the data set's training (held: of its test), in the archive's order by name."""
    with zipfile.ZipFile(path) as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".wav")):
            digit, _, index = Path(name).stem.split("_")
            if (int(index) < 5) == held:
                rate, samples = wavfile.read(io.BytesIO(archive.read(name)))
                if rate != RATE:
                    raise SystemExit(f"{path}: {name} has {rate} Hz, not {RATE}")
                yield Spoken(Path(name).name, int(digit), samples)


def numpy_features(spoken: Spoken, norm: Norm) -> NDArray[np.float32]:
    """(FRAMES, COEFFICIENTS) as the network is trained on them; float64 until the last step."""
    raw = features(one_second(spoken.samples), mel_filters())
    scaled: NDArray[np.float32] = ((raw - norm.mean) / norm.deviation).astype(np.float32)
    return scaled


def write_tables(norm: Norm, path: Path) -> None:
    """tables.c: window, circle, mel bands, cosines, mean and deviation."""
    circle = 2.0 * np.pi * np.arange(SIZE // 2) / SIZE
    filters = mel_filters()
    first = [int(np.flatnonzero(row)[0]) for row in filters]
    parts = [row[np.flatnonzero(row)] for row in filters]
    starts = np.cumsum([0, *map(len, parts)])
    bands = [f"{{{f}U, {len(p)}U, {s}U}}" for f, p, s in zip(first, parts, starts[:-1], strict=True)]
    cosines = dct(np.eye(BANDS), type=2, norm="ortho", axis=1)[:, :COEFFICIENTS].T
    turns = [f"{{{_f(c)}, {_f(s)}}}" for c, s in zip(np.cos(circle), np.sin(circle), strict=True)]
    rows = [f"{{{', '.join(map(_f, row))}}}" for row in cosines]
    lines = ["/* Written by mfcc_tables.py. */", '#include "mfcc.h"', ""]
    lines += _array("const float mfcc_window[MFCC_WINDOW]", map(_f, np.hanning(WINDOW) / 32768.0))
    lines += _array("const float mfcc_turn[MFCC_SIZE / 2][2]", turns)
    lines += _array("const mfcc_band mfcc_bands[MFCC_BANDS]", bands)
    lines += _array("const float mfcc_weights[]", map(_f, np.concatenate(parts)))
    lines += _array("const float mfcc_cosines[MFCC_COEFFICIENTS][MFCC_BANDS]", rows)
    lines += _array("const float mfcc_mean[MFCC_COEFFICIENTS]", map(_f, norm.mean))
    lines += _array("const float mfcc_inverse[MFCC_COEFFICIENTS]", map(_f, 1.0 / norm.deviation))
    path.write_text("\n".join(lines))


def write_recordings(chosen: Sequence[Spoken], path: Path) -> None:
    """recordings.c: the samples as they were recorded."""
    lines = ["/* Written by mfcc_tables.py. */", '#include "words.h"', ""]
    for i, spoken in enumerate(chosen):
        lines += [f"/* {spoken.name} */", *_array(f"static const int16_t samples{i}[]", map(str, spoken.samples))]
    rows = [f"{{{len(s.samples)}U, {s.digit}U, samples{i}}}" for i, s in enumerate(chosen)]
    lines += _array("const recording recordings[]", rows)
    lines += [f"const uint32_t recordings_count = {len(chosen)}U;", ""]
    path.write_text("\n".join(lines))


def _f(value: float) -> str:
    return f"{np.float32(value):.9e}f"


def _array(head: str, items: Iterable[str]) -> list[str]:
    values = list(items)
    rows = [", ".join(values[i : i + 8]) for i in range(0, len(values), 8)]
    return [f"{head} = {{", *(f"    {row}," for row in rows), "};", ""]


def spread(recordings: Iterable[Spoken], count: int) -> list[Spoken]:
    """`count` of them (fewer, if there are not so many), evenly among all."""
    every = list(recordings)
    return [every[i] for i in np.linspace(0, len(every) - 1, min(count, len(every))).round().astype(int)]


def read_norm(folder: Path) -> Norm:
    """What the training's features were scaled by, from norm.npz beside them."""
    with np.load(folder / "norm.npz") as file:
        return Norm(file["mean"], file["deviation"])


def write(norm: Norm, chosen: Sequence[Spoken], folder: Path) -> None:
    """tables.c and recordings.c."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(norm, folder / "tables.c")
    write_recordings(chosen, folder / "recordings.c")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="recordings as DIGIT_SPEAKER_INDEX.wav in a zip")
    parser.add_argument("features", type=Path, help="where kws_train.py left norm.npz")
    parser.add_argument("output", type=Path, help="folder for tables.c and recordings.c")
    parser.add_argument("--count", type=int, default=40, help="recordings of the test (default: 40)")
    args = parser.parse_args()
    write(read_norm(args.features), spread(read_recordings(args.archive, held=True), args.count), args.output)


if __name__ == "__main__":
    main()
