"""MFCC in C against numpy: real audio where it is, sounds made here everywhere."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.examples.conftest import EXAMPLES

SOURCE = EXAMPLES / "kws_mfcc"
TOLERANCE = 1e-4  # of coefficients with deviation about 1: single precision against double
WITHOUT_NOISE = 2e-3  # most bands of a pure tone hold the transform's rounding; nothing that was recorded is so clean
WARNINGS = ("-Wall -Wextra -pedantic -Werror -Wconversion -Wsign-conversion -Wshadow -Wundef -Wdouble-promotion "
            "-Wcast-qual -Wmissing-prototypes")  # fmt: skip


@pytest.fixture(scope="module")
def tables() -> Any:
    import mfcc_tables as tables

    return tables


@pytest.fixture(scope="module")
def norm(tables: Any) -> Any:
    rng = np.random.default_rng(0)
    return tables.Norm(rng.normal(-5.0, 5.0, tables.COEFFICIENTS), rng.uniform(0.5, 3.0, tables.COEFFICIENTS))


@pytest.fixture(scope="module")
def library(tables: Any, norm: Any, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """mfcc.c for this computer, compiled with warnings as errors."""
    folder = tmp_path_factory.mktemp("mfcc")
    tables.write_tables(norm, folder / "tables.c")
    compiler = ["gcc"] if shutil.which("gcc") else [sys.executable, "-m", "ziglang", "cc"]
    words = [*compiler, "-std=c99", "-O2", "-ffp-contract=off", *WARNINGS.split(), "-shared", "-fPIC", f"-I{SOURCE}"]
    done = subprocess.run(
        [*words, SOURCE / "mfcc.c", folder / "tables.c", "-o", folder / "mfcc.so"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return ctypes.CDLL(str(folder / "mfcc.so"))


@pytest.fixture(scope="module")
def in_c(library: ctypes.CDLL, tables: Any) -> Callable[[NDArray[np.int16]], NDArray[np.float32]]:
    """Samples to (FRAMES, COEFFICIENTS)."""

    def call(samples: NDArray[np.int16]) -> NDArray[np.float32]:
        x, scratch = np.ascontiguousarray(samples), (ctypes.c_float * 4096)()
        out = np.zeros((tables.numpy_features(tables.Spoken("", 0, x), ONE)).shape, np.float32)
        for frame in range(len(out)):
            row = (ctypes.c_float * out.shape[1])()
            library.mfcc_frame(x.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint32(len(x)), ctypes.c_uint32(frame), row,
                               scratch)  # fmt: skip
            out[frame] = row[:]
        return out

    ONE = tables.Norm(np.zeros(tables.COEFFICIENTS), np.ones(tables.COEFFICIENTS))
    return call


def sounds() -> dict[str, NDArray[np.int16]]:
    """int16 at 8 kHz: lengths around a second, silence, one sample, full scale, tones, noise."""
    rng, t = np.random.default_rng(1), np.arange(8000) / 8000
    sweep = np.sin(2 * np.pi * (100 * t + 1900 * t**2))
    return {
        "nothing": np.zeros(0, np.int16),
        "one sample": np.array([-32768], np.int16),
        "silence": np.zeros(5000, np.int16),
        "odd": (rng.normal(0, 300, 3333)).astype(np.int16),
        "a second": (sweep * 20000).astype(np.int16),
        "longer": rng.integers(-32768, 32768, 9001).astype(np.int16),
        "full scale": np.where(np.sin(2 * np.pi * 440 * t) > 0, 32767, -32768).astype(np.int16),
        "quiet": rng.integers(-1, 2, 8000).astype(np.int16),
    }


@pytest.mark.parametrize("name", sounds())
def test_sounds(name: str, tables: Any, norm: Any, in_c: Callable[[NDArray[np.int16]], NDArray[np.float32]]) -> None:
    samples = sounds()[name]
    wanted = tables.numpy_features(tables.Spoken(name, 0, samples), norm)
    within = WITHOUT_NOISE if name == "a second" else TOLERANCE
    np.testing.assert_allclose(in_c(samples), wanted, atol=within, rtol=0)


@pytest.mark.shared
def test_real_recordings(
    shared: Path, tables: Any, norm: Any, in_c: Callable[[NDArray[np.int16]], NDArray[np.float32]]
) -> None:
    every = list(tables.read_recordings(shared / "data" / "fsdd.zip", held=True))
    chosen = tables.spread(every, 60)
    assert len(every) == 300
    assert {s.digit for s in chosen} == set(range(10))
    for spoken in chosen:
        wanted = tables.numpy_features(spoken, norm)
        np.testing.assert_allclose(in_c(spoken.samples), wanted, atol=TOLERANCE, rtol=0, err_msg=spoken.name)


def test_another_window_is_noticed(tables: Any, norm: Any, in_c: Callable[..., NDArray[np.float32]]) -> None:
    """The comparison can fail: a recording half a frame late is far beyond the tolerance."""
    samples = sounds()["a second"]
    wanted = tables.numpy_features(tables.Spoken("", 0, np.roll(samples, 80)), norm)
    assert np.abs(in_c(samples) - wanted).max() > 100 * TOLERANCE


def test_codes_are_those_of_the_formats(library: ctypes.CDLL) -> None:
    """Ties, saturation, any scale: as QParams has them."""
    from xdeploy.formats import QParams

    rng = np.random.default_rng(2)
    for q in (QParams(float(np.float32(0.05)), 3), QParams(0.25, -128), QParams(float(np.float32(0.0371)), 127)):
        x = np.concatenate([rng.normal(0, 3, 500), np.arange(-40, 40) * q.scale / 2, [1e4, -1e4, 0.0]])
        x = x.astype(np.float32)
        codes = np.zeros(len(x), np.int8)
        library.mfcc_codes(x.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint32(len(x)), ctypes.c_float(q.scale),
                           ctypes.c_int(q.zero_point), codes.ctypes.data_as(ctypes.c_void_p))  # fmt: skip
        np.testing.assert_array_equal(codes, q.quantise(x))


def test_sizes_in_the_header_are_the_features(tables: Any) -> None:
    from spoken_digits import BANDS, COEFFICIENTS, FRAMES, RATE, SIZE, STEP, WINDOW

    text = (SOURCE / "mfcc.h").read_text()
    sizes = dict(RATE=RATE, WINDOW=WINDOW, STEP=STEP, SIZE=SIZE, BANDS=BANDS, COEFFICIENTS=COEFFICIENTS, FRAMES=FRAMES)
    for name, value in sizes.items():
        assert f"#define MFCC_{name} {value}" in text
    assert tables.BANDS == BANDS
