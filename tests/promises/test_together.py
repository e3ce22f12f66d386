"""Many builds at once on one cache of figures and weights: all end well, and their packages are the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import small
import warm

from xdeploy.caches import cache_root

MANY = 8
# one thread and no fine-tuning: eight of them share this machine
DEMO = ["build", "--target", small.TARGET, "--quiet", "--tune", "quick", "--set", "threads=1"]


@pytest.mark.slow
def test_eight_demos_on_one_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caches are empty when they begin: each trains the demo's network and measures kernels, and keeps both."""
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(cache_root() / "zig"))  # the compiler's C libraries: minutes
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    warm.load_all()
    place = warm.Place.below(tmp_path / "spot", tmp_path)
    outputs = [tmp_path / f"out{i}" for i in range(MANY)]
    logs = [tmp_path / f"log{i}" for i in range(MANY)]
    started = [warm.start([*DEMO, "-o", str(output)], place, log)[0] for output, log in zip(outputs, logs, strict=True)]
    codes = [warm.finish(pid, limit=3600) for pid in started]
    assert codes == [0] * MANY, [log.read_text()[-500:] for log in logs]
    assert not any(log.read_text() for log in logs)
    assert len({small.digest(output) for output in outputs}) == 1
    assert len({(output / small.TARGET / "manifest.json").read_bytes() for output in outputs}) == 1
    assert len(list((tmp_path / "home" / "xdeploy").glob("digits-*.safetensors"))) == 1
    assert list((place.cache / "tune").rglob("*.json"))
    assert not small.litter(*outputs, place.cache, place.temporary, tmp_path / "home" / "xdeploy")
