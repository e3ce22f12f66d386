"""Figures that ship with the package: their files, what of them is believed, and what goes before them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import xdeploy.tune
from tests.networks import Drawer
from xdeploy.lir.graph import LoweredGraph
from xdeploy.recipe import TuneOptions
from xdeploy.target import load_target
from xdeploy.tune import tune
from xdeploy.tune.cache import Cache
from xdeploy.tune.candidates import candidates
from xdeploy.tune.jobs import Figures
from xdeploy.tune.pretuned import KEY, Entry, Pretuned, pretuned, read, shipped, written

M4 = load_target("cortex-m4")
QUICK = TuneOptions(effort="quick")
TOOLS = {"apache-tvm": "1"}
ENTRIES = [
    Entry("cortex-m7", "b", "01" * 16, Figures(instructions=12, cycles=13, code=40, helpers={"xd_tile": 88})),
    Entry("cortex-m4", "c", "02" * 16, Figures(instructions=7, code=8)),
    Entry("cortex-m4", "a", "03" * 16, Figures(instructions=9, cycles=10, code=4)),
]
MOST = 500_000  # bytes of all files


# ------------------------------------------------------------------------------------------------- the files
def test_a_file_is_the_same_in_any_order_and_read_as_written() -> None:
    text = written(ENTRIES, TOOLS)
    assert text == written([*reversed(ENTRIES), ENTRIES[0]], TOOLS)
    assert read(text) == [ENTRIES[2], ENTRIES[1], ENTRIES[0]]
    assert json.loads(text.splitlines()[0])["tools"] == TOOLS


@pytest.mark.parametrize("figures", [Figures(nanoseconds=5.0), Figures(1, differing=2), Figures(failure="no")])
def test_times_and_refused_rows_do_not_ship(figures: Figures) -> None:
    with pytest.raises(ValueError, match="only sound counts"):
        written([Entry("cortex-m4", "a", "00" * 16, figures)], TOOLS)


SPOILT = [
    "", "{", "[]", "null", "\x00", '{"schema": "xdeploy.pretuned/0"}', written(ENTRIES, TOOLS)[:-4],
    *(written(ENTRIES, TOOLS) + row for row in (
        "{}", "[]", '["cortex-m4", "a", "00"]', '["cortex-m4", "a", 5, 1, 1, 1, {}]',
        '["cortex-m4", "a", "00", "1", 1, 1, {}]', '["cortex-m4", "a", "00", -1, 1, 1, {}]',
        '["cortex-m4", "a", "00", 1, 1, 1, []]', '["cortex-m4", "a", "00", 1, 1, 1, {}, 1]',
    )),
]  # fmt: skip


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_spoilt_file_counts_as_not_there(spoilt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (any)
        read(spoilt)
    whole = written(ENTRIES[:1], TOOLS)
    monkeypatch.setattr(sys.modules["xdeploy.tune.pretuned"], "shipped", lambda: {"a": spoilt, "b": whole})
    found = pretuned.__wrapped__()  # not the one that is kept
    assert dict(found.table) == {ENTRIES[0].key: ENTRIES[0].figures}


def test_what_ships_is_whole_small_and_of_emulated_targets() -> None:
    texts = shipped()
    assert {"demo", "digits_cnn-int8", "ds_cnn-int8", "resnet20-int8"} <= set(texts)
    assert sum(map(len, texts.values())) < MOST
    for name, text in texts.items():
        found = read(text)
        assert found, name
        assert written(found, json.loads(text.splitlines()[0])["tools"]) == text, name
        assert all(load_target(t).kind != "host" for t in {e.target for e in found}), name
        assert all(e.figures.instructions and len(e.key) == KEY for e in found), name


# ------------------------------------------------------------------------------------------ how they are used
def network() -> LoweredGraph:
    d = Drawer((6, 6, 8))
    return d.finish(d.conv("a", "x", 8))[0]


def pretend(offset: int) -> list[tuple[Any, Figures]]:
    """(job, made-up figures) for the rows that compete for the network."""
    rows = candidates(network(), M4, "tuned", "quick")["a"]
    return [(c.job, Figures(instructions=offset + i, cycles=offset + i, code=4)) for i, c in enumerate(rows)]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the user; made-up figures ship, from 1000 on, and nothing can be measured."""
    ships = Pretuned(Entry("cortex-m4", j.kernel, j.work[:KEY], figures) for j, figures in pretend(1000))
    monkeypatch.setattr(xdeploy.tune, "pretuned", lambda: ships)
    monkeypatch.setattr(xdeploy.tune, "measure_all", lambda cut, *_: pytest.fail("measured") if cut else iter(()))
    monkeypatch.setenv("XDEPLOY_CACHE", str(tmp_path))
    return tmp_path


def told(choice: Any) -> list[int]:
    return [c["instructions"] for c in choice.notes["nodes"]["a"]["candidates"]]


def test_what_ships_is_not_measured_and_not_written(folder: Path) -> None:
    choice = tune(network(), M4, QUICK)
    assert told(choice) == [figures.instructions for _, figures in pretend(1000)]
    assert choice.kernels["a"] == pretend(1000)[0][0].kernel
    assert list(folder.rglob("*")) == []


def test_what_the_user_has_measured_goes_first(folder: Path) -> None:
    (job, figures), *rest = pretend(5000)
    Cache().put(job.key, job.kernel, figures)
    choice = tune(network(), M4, QUICK)
    assert told(choice) == [5000, *(1000 + i for i in range(1, len(rest) + 1))]
    assert choice.kernels["a"] != job.kernel


def test_another_text_target_or_tool_does_not_ask_for_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ships = xdeploy.tune.pretuned()
    assert all(ships.get(job.work) for job, _ in pretend(0))
    for other in (load_target("cortex-m7"), load_target("cortex-m33")):
        rows = candidates(network(), other, "tuned", "quick")["a"]
        assert not any(ships.get(c.job.work) for c in rows)
    monkeypatch.setattr(sys.modules["xdeploy.tune.candidates"], "tool_versions", lambda: {"apache-tvm": "0"})
    assert not any(ships.get(job.work) for job, _ in pretend(0))


def test_off_does_not_look(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xdeploy.tune, "pretuned", lambda: pytest.fail("looked up"))
    assert tune(network(), M4, TuneOptions()).kernels == {}
