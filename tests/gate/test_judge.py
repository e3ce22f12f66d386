"""Every gate at, just below and just above its limit; what is missing; what is broken."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gate.conftest import FIGURES as VALUES
from tests.gate.conftest import artifact, quantity
from xdeploy.errors import UsageError
from xdeploy.gate import FIGURES, Gate, GateResult, Limits, check_artifact

KEYS = [f.key for f in FIGURES]
WHOLE = {f.key for f in FIGURES if f.unit not in ("s", "J")}
few = settings(max_examples=25, deadline=None)


def gate(result: GateResult, rule: str) -> Gate:
    return next(g for g in result.gates if g.rule == rule)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gate")


@pytest.mark.parametrize("key", KEYS)
@given(data=st.data())
@few
def test_costs_at_below_and_above(place: Path, key: str, data: st.DataObject) -> None:
    whole = key in WHOLE
    value = data.draw(st.integers(1, 2**40) if whole else st.floats(1e-9, 1e3))
    folder = artifact(place / "cortex-m4", {**VALUES, key: value})
    below = value - 1 if whole else math.nextafter(value, 0)
    above = value + 1 if whole else math.nextafter(value, math.inf)
    for limit, passed in ((value, True), (above, True), (below, False)):
        result = check_artifact(folder, Limits(**{key: limit}))
        found = gate(result, f"max-{key}")
        assert result.passed is passed is (found.status == "ok"), (value, limit)
        assert found.value == quantity(key, value)
        assert found.limit == limit
        if limit:
            assert found.headroom == pytest.approx(100 * (limit - value) / limit, abs=1e-9)


@given(right=st.integers(0, 997), n=st.just(997))
@few
def test_accuracy_by_counting(place: Path, right: int, n: int) -> None:
    """The limit is a share of right answers; the file holds a rounded percentage."""
    folder = artifact(place / "counted" / "cortex-m4", accuracy=(100 * right / n, None, n))
    for thousandth in (right * 1000 // n + k for k in (-1, 0, 1)):
        if 0 <= thousandth <= 1000:
            passed = Fraction(right, n) >= Fraction(thousandth, 1000)
            assert check_artifact(folder, Limits(accuracy=thousandth / 1000)).passed is passed
            assert thousandth <= 10 or check_artifact(folder, Limits(accuracy=thousandth / 10)).passed is passed


@given(deployed=st.integers(0, 3000), lost=st.integers(-50, 50), step=st.sampled_from([-1, 0, 1]))
@few
def test_drop_against_the_float_network(place: Path, deployed: int, lost: int, step: int) -> None:
    """3000 samples: one is a thirtieth of a point, which no float holds."""
    n, better = 3000, max(0, min(3000, deployed + lost))
    folder = artifact(place / "drop" / "cortex-m4", accuracy=(100 * deployed / n, 100 * better / n, n))
    limit = max(0.0, (better - deployed) / 30 + step * 0.001)
    passed = Fraction(better - deployed, 30) <= Fraction(repr(limit))
    assert check_artifact(folder, Limits(drop=limit)).passed is passed


@pytest.mark.parametrize(("drop", "passed"), [(0.52, True), (0.51, False)])
def test_drop_is_not_fooled_by_floats(tmp_path: Path, drop: float, passed: bool) -> None:
    assert 88.36 - 87.84 != 0.52
    folder = artifact(tmp_path / "cortex-m4", accuracy=(87.84, 88.36, 10_000))
    assert check_artifact(folder, Limits(drop=drop)).passed is passed


@pytest.mark.parametrize("key", KEYS)
@given(
    base=st.integers(0, 10**6), step=st.sampled_from([-1, 0, 1]), growth=st.sampled_from([0.0, 0.1, 2.0, 7.5, 100.0])
)
@few
def test_growth(place: Path, key: str, base: int, step: int, growth: float) -> None:
    unit = Fraction(1) if key in WHOLE else Fraction(1, 10**6)
    most = math.floor(base * (1 + Fraction(repr(growth)) / 100))
    now = max(0, most + step)
    before, after = (n if key in WHOLE else float(n * unit) for n in (base, now))
    old = artifact(place / f"old-{key}" / "cortex-m4", {**VALUES, key: before})
    new = artifact(place / f"new-{key}" / "cortex-m4", {**VALUES, key: after})
    result = check_artifact(new, Limits(growth=growth), old)
    exact_before, exact_after = (Fraction(repr(v)) for v in (before, after))
    passed = exact_after <= exact_before * (1 + Fraction(repr(growth)) / 100)
    assert (gate(result, f"max-growth-{key}").status == "ok") is passed is result.passed
    assert {g.status for g in result.gates if key not in g.rule} == {"ok"}


@pytest.mark.parametrize(
    ("limit", "strict", "passed", "crosses"),
    [(110, False, True, False), (109, False, True, True), (100, False, True, True), (99, False, False, True),
     (89, False, False, False), (110, True, True, False), (109, True, False, True), (100, True, False, True)],
)  # fmt: skip
def test_error_bars(tmp_path: Path, limit: int, strict: bool, passed: bool, crosses: bool) -> None:
    folder = artifact(tmp_path / "cortex-m4", {"cycles": 100}, bars={"cycles": (90, 110)})
    found = gate(check_artifact(folder, Limits(cycles=limit, strict=strict)), "max-cycles")
    assert (found.status == "ok") is passed
    assert bool(found.warning) is crosses
    assert ("high end" in found.reason) is strict


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_figure_fails(tmp_path: Path, key: str) -> None:
    for n, figures in enumerate([{k: v for k, v in VALUES.items() if k != key}, {**VALUES, key: None}]):
        if n and key in ("flash", "arena"):
            continue  # the manifest always has them
        folder = artifact(tmp_path / f"{n}" / "cortex-m4", figures)
        found = gate(check_artifact(folder, Limits(**{key: 2**60})), f"max-{key}")
        assert found.status == "failed"
        assert found.reason.startswith("not measured")
        assert ("no pipeline" in found.reason) is (key == "latency")


def test_missing_accuracies_fail(tmp_path: Path) -> None:
    limits = Limits(accuracy=0.0, drop=100.0)
    for n, accuracy in enumerate([None, (None, None, 10), (None, 50.0, 10), (50.0, None, 10)]):
        result = check_artifact(artifact(tmp_path / str(n) / "cortex-m4", accuracy=accuracy), limits)
        assert gate(result, "max-drop").status == "failed"
        assert gate(result, "max-drop").reason.startswith("not measured")
        assert (gate(result, "min-accuracy").status == "failed") is (n != 3)


def test_accuracy_of_another_build_does_not_count(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "cortex-m4")
    (folder / "golden.npz").write_bytes(b"mine")
    (tmp_path / "golden.npz").write_bytes(b"mine")
    assert check_artifact(folder, Limits(accuracy=0.9)).passed
    (tmp_path / "golden.npz").write_bytes(b"other")
    result = check_artifact(folder, Limits(accuracy=0.9))
    assert "another build" in gate(result, "min-accuracy").reason
    assert not result.passed


@pytest.mark.parametrize(("verdict", "allowed", "passed"), [
    ("bit-exact", False, True), ("bit-exact", True, True), ("differs", False, False), ("differs", True, False),
    ("not run", False, False), ("not run", True, True), ("fine, trust me", True, False),
])  # fmt: skip
def test_verdicts(tmp_path: Path, verdict: str, allowed: bool, passed: bool) -> None:
    folder = artifact(tmp_path / "cortex-m4", verdict=verdict, reason=None if verdict == "bit-exact" else "why not")
    result = check_artifact(folder, Limits(allow_not_run=allowed))
    assert result.passed is passed
    found = gate(result, "bit-exact")
    assert ("why not" in found.reason) is (verdict != "bit-exact")
    assert bool(found.warning) is (verdict == "not run" and allowed)


def test_a_loss_against_the_baseline(tmp_path: Path) -> None:
    old = artifact(tmp_path / "old" / "cortex-m4", accuracy=(90.0, None, 1000))
    new = artifact(tmp_path / "new" / "cortex-m4", accuracy=(89.4, None, 1000))
    for drop, passed in ((0.6, True), (0.59, False)):
        result = check_artifact(new, Limits(drop=drop), old)
        assert (gate(result, "max-drop-baseline").status == "ok") is passed is result.passed
        assert gate(result, "max-drop").status == "noted"  # a file that came quantised has no float network
    unknown = artifact(tmp_path / "unknown" / "cortex-m4", accuracy=None)
    assert gate(check_artifact(new, Limits(drop=1), unknown), "max-drop-baseline").status == "failed"
    assert gate(check_artifact(unknown, Limits(drop=1), old), "max-drop").status == "failed"


def test_growth_of_what_one_side_lacks(tmp_path: Path) -> None:
    some = {k: v for k, v in VALUES.items() if k != "cycles"}
    whole, part = artifact(tmp_path / "a" / "cortex-m4"), artifact(tmp_path / "b" / "cortex-m4", some)
    assert gate(check_artifact(part, Limits(growth=5), whole), "max-growth-cycles").status == "failed"
    assert gate(check_artifact(whole, Limits(growth=5), part), "max-growth-cycles").status == "noted"
    other = artifact(tmp_path / "c" / "cortex-m55")
    result = check_artifact(other, Limits(growth=5), whole)
    assert not result.passed
    assert "not in the baseline" in result.failed[0].reason
    assert check_artifact(other, Limits(), whole).passed
    with pytest.raises(UsageError, match="baseline"):
        check_artifact(other, Limits(growth=5))


def test_measured_times_of_two_runs_are_not_held_to_growth(tmp_path: Path) -> None:
    slow = {"quantities": {"latency": {"value": 2.0, "unit": "s", "how": "measured"}}}
    fast = {"quantities": {"latency": {"value": 1.0, "unit": "s", "how": "measured"}}}
    old, new = artifact(tmp_path / "a" / "x86-64", bench=fast), artifact(tmp_path / "b" / "x86-64", bench=slow)
    assert gate(check_artifact(new, Limits(growth=1), old), "max-growth-latency").status == "noted"
    assert not check_artifact(new, Limits(growth=1, latency=1.5), old).passed


def test_a_run_folder_has_all_its_targets(tmp_path: Path) -> None:
    for name in ("cortex-m4", "cortex-m55", ".host"):
        artifact(tmp_path / name)
    assert [t.target for t in check_artifact(tmp_path).targets] == ["cortex-m4", "cortex-m55"]
    assert [t.target for t in check_artifact(tmp_path, targets=["cortex-m55"]).targets] == ["cortex-m55"]
    with pytest.raises(UsageError, match="cortex-m4"):
        check_artifact(tmp_path, targets=["cortex-m5"])
    record = {"schema": "xdeploy.run/1", "request": {"targets": ["cortex-m55", "cortex-a72"]}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="cortex-a72"):
        check_artifact(tmp_path)


@pytest.mark.parametrize("names", [["../cortex-m4"], ["/etc"], [".."], [7], "cortex-m4", None])
def test_a_run_record_leads_nowhere_else(tmp_path: Path, names: Any) -> None:
    artifact(tmp_path / "out" / "cortex-m4")
    record = {"schema": "xdeploy.run/1", "request": {"targets": names}}
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    try:
        found = check_artifact(tmp_path / "out").targets
    except UsageError:
        return
    assert [t.target for t in found] == ["cortex-m4"]


# --------------------------------------------------------------------------------------------- broken files
@pytest.mark.parametrize("name", ["manifest.json", "bench.json", "program.json"])
@pytest.mark.parametrize("content", [
    None, b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema": 7}', b'{"schema": "xdeploy.plan/1"}',
    b'{"schema": "SAME"}', b"[" * 100_000, b'{"schema": "SAME", "nodes": 5, "layers": 5, "flash": 5, "target": 5}',
    b'{"schema": "SAME", "nodes": [{}], "layers": [{}], "target": "cortex-m4"}',
])  # fmt: skip
def test_broken_files(tmp_path: Path, name: str, content: bytes | None) -> None:
    folder = artifact(tmp_path / "cortex-m4")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content.replace(b"SAME", f"xdeploy.{name[:-5]}/1".encode()))
    if name == "program.json" and content == b'{"schema": "SAME"}':
        assert check_artifact(folder).passed  # a program without a node
        return
    with pytest.raises(UsageError, match=name if name != "manifest.json" else r"manifest|holds no"):
        check_artifact(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, "5", True, [1], {"a": 1}, 10**400, 2**80])
@pytest.mark.parametrize("part", ["value", "low", "high"])
def test_figures_that_are_no_amounts(tmp_path: Path, value: Any, part: str) -> None:
    figures = {"cycles": {"value": 5, "unit": "cycle", "how": "modelled", part: value}}
    folder = artifact(tmp_path / "cortex-m4", bench={"quantities": figures})
    with pytest.raises(UsageError, match=r"bench\.json: cycles"):
        check_artifact(folder, Limits(flash=5))


@pytest.mark.parametrize("change", [{"unit": "byte"}, {"unit": None}, {"how": "guessed"}, {"how": None}])
def test_figures_need_unit_and_label(tmp_path: Path, change: dict[str, Any]) -> None:
    figures = {"cycles": {"value": 5, "unit": "cycle", "how": "modelled", **change}}
    with pytest.raises(UsageError, match="cycles"):
        check_artifact(artifact(tmp_path / "cortex-m4", bench={"quantities": figures}))


@pytest.mark.parametrize("value", [100.5, -1, math.nan, "90"])
def test_accuracies_that_are_none(tmp_path: Path, value: Any) -> None:
    folder = artifact(tmp_path / "cortex-m4", accuracy=(value, None, 10))
    with pytest.raises(UsageError, match="accuracy"):
        check_artifact(folder)


def test_files_that_contradict_each_other(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "a" / "cortex-m4", bench={"target": "cortex-m55"})
    with pytest.raises(UsageError, match="cortex-m55"):
        check_artifact(folder)
    flash = {"flash": {"code": 9_999, "constants": 0, "data": 0, "zeros": 0}}
    folder = artifact(tmp_path / "b" / "cortex-m4", manifest=flash)
    with pytest.raises(UsageError, match="another build"):
        check_artifact(folder)


@pytest.mark.parametrize("path", ["nothing", "file", "empty"])
def test_no_artifact(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=path):
        check_artifact(tmp_path / path)
