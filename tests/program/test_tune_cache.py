"""The cache of figures: what is read back, what is not believed, and where it lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xdeploy.tune.cache import Cache, cache_folder
from xdeploy.tune.jobs import Figures

KEY = "ab" * 32
FIGURES = Figures(instructions=123, cycles=150, code=40, helpers={"xd_tile": 88})


def test_what_is_put_is_got(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.get(KEY) is None
    cache.put(KEY, "row", FIGURES)
    assert cache.get(KEY) == FIGURES
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [cache.path(KEY)]  # no part is left


@pytest.mark.parametrize(
    "spoilt",
    [
        "", "{", "[]", "null", '"text"', "[" * 100_000, "\x00\xff", '{"schema": "xdeploy.tuned/1"}',
        {"schema": "xdeploy.tuned/0"}, {"key": "cd" * 32}, {"figures": None}, {"figures": []},
        {"figures": {**FIGURES.to_dict(), "instructions": "123"}}, {"figures": {**FIGURES.to_dict(), "code": -1}},
        {"figures": {**FIGURES.to_dict(), "instructions": True}}, {"figures": {**FIGURES.to_dict(), "more": 1}},
        {"figures": {**FIGURES.to_dict(), "helpers": {"a": "b"}}},
        {"figures": {**FIGURES.to_dict(), "helpers": {"a": -4}}},
    ],
)  # fmt: skip
def test_a_spoilt_entry_counts_as_not_measured(tmp_path: Path, spoilt: object) -> None:
    cache = Cache(tmp_path)
    cache.put(KEY, "row", FIGURES)
    path = cache.path(KEY)
    whole = json.loads(path.read_text())
    text = spoilt if isinstance(spoilt, str) else json.dumps({**whole, **spoilt})  # type: ignore[dict-item]
    path.write_bytes(text.encode("latin-1"))
    assert cache.get(KEY) is None
    cache.put(KEY, "row", FIGURES)
    assert cache.get(KEY) == FIGURES


def test_a_cut_off_entry_counts_as_not_measured(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put(KEY, "row", FIGURES)
    whole = cache.path(KEY).read_bytes()
    for end in range(len(whole.rstrip())):
        cache.path(KEY).write_bytes(whole[:end])
        assert cache.get(KEY) is None


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file")
    cache.put(KEY, "row", FIGURES)
    assert cache.get(KEY) is None


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDEPLOY_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache/xdeploy/tune"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache/xdeploy/tune"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c/xdeploy/tune"
    monkeypatch.setenv("XDEPLOY_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own/tune"
