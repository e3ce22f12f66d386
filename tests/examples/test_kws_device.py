"""Keyword spotting on the emulated device: raw audio in, the word out, as the Python path has it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xdeploy.recipe import Recipe

missing = [p for p in ("cmake", "qemu-system-arm") if shutil.which(p) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.qemu,
    pytest.mark.shared,
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
]
COUNT = 30  # recordings
QUICK = {"threads": 1, "data.calibration": 64, "relevance.samples": 32, "plan.max_drop": 5.0}
CASES = [("mps2-an386", "gcc", "unicorn"), ("mps3-an547", "gcc", "qemu"), ("mps2-an386", "zig", "unicorn")]


@pytest.fixture(scope="module")
def kws() -> Any:
    import kws

    return kws


@pytest.fixture(scope="module")
def features(shared: Path, kws: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of a quarter of the recordings and a network that has learnt a few epochs from them."""
    folder = tmp_path_factory.mktemp("features")
    kws.train.prepare(shared / "data" / "fsdd.zip", folder, copies=1, limit=600)
    share = kws.train.train(folder, epochs=16, batch=32)
    assert share > 0.5  # ten words
    return folder


@pytest.fixture(scope="module")
def built(kws: Any, features: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("built")
    return folder, kws.packages(features, ["cortex-m4", "cortex-m55", "x86-64"], folder, Recipe().with_options(QUICK))


@pytest.fixture(scope="module")
def chosen(shared: Path, kws: Any) -> list[Any]:
    return kws.tables.spread(kws.tables.read_recordings(shared / "data" / "fsdd.zip", held=True), COUNT)


@pytest.fixture(scope="module")
def made(kws: Any, features: Path, chosen: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    kws.tables.write(kws.tables.read_norm(features), chosen, folder)
    return folder


@pytest.mark.parametrize(("board", "toolchain", "via"), CASES)
def test_the_device_hears_what_python_hears(
    board: str, toolchain: str, via: str, kws: Any, features: Path, built: tuple[Path, dict[str, Any]],
    chosen: list[Any], made: Path, tmp_path: Path,
) -> None:  # fmt: skip
    if toolchain == "gcc" and shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("arm-none-eabi-gcc is not installed")
    folder, report = built
    target = kws.BOARDS[board]
    image = kws.compiled(folder / target, made, tmp_path, board, "-DSHOW_CODES=ON", toolchain=toolchain)
    heard = kws.listen(image, board)
    wanted = kws.python_path(chosen, kws.tables.read_norm(features), folder / target, via)
    assert [h.said for h in heard] == [kws.train.WORDS[s.digit] for s in chosen]
    words = [kws.train.WORDS[w] for w in wanted.scores.argmax(1)]
    assert [h.word for h in heard] == words
    assert len(set(words)) > 5
    # a feature at the border between two codes may fall to either side
    apart = np.array([h.codes for h in heard]) - wanted.codes
    assert np.abs(apart).max() <= 1
    assert np.mean(apart != 0) < 1e-3
    for h, same, scores in zip(heard, ~apart.any(1), wanted.scores, strict=True):
        if same:
            np.testing.assert_array_equal(h.scores, scores)
    most = 5e6 if toolchain == "gcc" else 60e6  # the zig toolchain file is for a core without floating point
    assert all(0.2e6 < h.features < most for h in heard)
    counted = report["targets"][target]["instructions"]["value"]
    np.testing.assert_allclose([h.network for h in heard], counted, rtol=0.02)
    said = kws.summary(heard, wanted, report, target)
    assert f"{COUNT} of {COUNT} words are those of the Python path" in said


def test_on_this_computer(
    kws: Any, features: Path, built: tuple[Path, dict[str, Any]], chosen: list[Any], made: Path, tmp_path: Path
) -> None:
    package = built[0] / "x86-64"
    program = kws.compiled(package, made, tmp_path)
    norm = kws.tables.read_norm(features)
    wanted = kws.python_path(chosen, norm, package, None)
    for spoken, x, scores in zip(chosen, wanted.features, wanted.scores, strict=True):
        done = subprocess.run([program], input=spoken.samples.tobytes(), capture_output=True, check=True)
        *rows, word = done.stdout.decode().splitlines()
        np.testing.assert_allclose(np.array([r.split() for r in rows], float), x, atol=1e-4, rtol=0)
        assert word == kws.train.WORDS[scores.argmax()]


def test_what_is_not_there_is_told(kws: Any, made: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"xd_kws\.h\s+is\s+not\s+there"):
        kws.compiled(tmp_path / "nothing", made, tmp_path / "b", "mps2-an386", toolchain="zig")
