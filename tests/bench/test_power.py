"""Measured power: every format, gates, idle power, uneven steps, glitches, gaps, and files that are no traces."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench import traces
from tests.bench.traces import ACTIVE_W, IDLE_W, PULSES, SUPPLY
from xdeploy.bench.columns import column
from xdeploy.bench.gate import Edge, debounced, integrate
from xdeploy.bench.instruments import open_trace
from xdeploy.bench.power import PowerOptions, Reading, measure, quantities, si, windows_of, with_power
from xdeploy.bench.traces import BLOCK, Chunk
from xdeploy.errors import ToolchainError, UsageError
from xdeploy.handover import Measurement, quantity

NET = (ACTIVE_W - IDLE_W) * 0.1  # joules of one pulse above idle
GROSS = ACTIVE_W * 0.1
# a step of power between two samples is a ramp to a trapezoid: at each edge an eighth of the step times the interval
EDGE = (ACTIVE_W - IDLE_W) / traces.RATE / 4
WORDS = ",".join(f"{a}:{b}" for a, b in PULSES)

FORMATS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "csv": (traces.generic, "CSV", "auto"),
    "ppk2": (traces.ppk2, "Nordic PPK2", "auto"),
    "ppk2 word": (lambda p: traces.ppk2(p, "word"), "Nordic PPK2", "D2"),
    "joulescope": (traces.joulescope, "Joulescope", WORDS),
    "lpm01a": (traces.lpm01a, "ST X-NUCLEO-LPM01A", "auto"),
    "lpm01a energy": (lambda p: traces.lpm01a(p, energy=True), "ST X-NUCLEO-LPM01A", "events"),
    "lpm01a stamps": (lambda p: traces.lpm01a(p, told=False), "ST X-NUCLEO-LPM01A", "auto"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_energy_that_went_in(tmp_path: Path, name: str) -> None:
    write, instrument, gate = FORMATS[name]
    reading = measure(write(tmp_path / "trace.csv"), PowerOptions(gate=gate, supply=SUPPLY))
    assert reading.instrument == instrument
    assert reading.idle == pytest.approx(IDLE_W, rel=1e-3)
    assert reading.duration == pytest.approx([0.1] * 3, rel=1e-6)
    assert reading.energy == pytest.approx([GROSS - EDGE] * 3, rel=1e-3)
    assert reading.net == pytest.approx([NET - EDGE] * 3, rel=1e-3)


def test_trapezoids_are_exact_where_power_is_linear() -> None:
    """A ramp over random steps: quadratic in closed form, whatever the steps are and wherever the pieces are cut."""
    rng = np.random.default_rng(0)
    time = np.sort(rng.uniform(0, 10, 5000))
    time[[0, -1]] = 0.0, 10.0
    power = 0.5 + 0.3 * time
    cuts = np.sort(rng.choice(np.arange(1, 4999), 9, replace=False))
    chunks = [Chunk(t, p, None, 1) for t, p in zip(np.split(time, cuts), np.split(power, cuts), strict=True)]
    found = integrate(chunks, [(1.25, 3.5), (7.0, 7.001)])
    for (a, b), up, down in zip(((1.25, 3.5), (7.0, 7.001)), found.edges[::2], found.edges[1::2], strict=True):
        assert down.energy - up.energy == pytest.approx(0.5 * (b - a) + 0.15 * (b * b - a * a), rel=1e-9)
    assert (found.start, found.end, found.samples) == (0.0, 10.0, 5000)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 60))
def test_energy_does_not_depend_on_the_pieces(seed: int, pieces: int, count: int) -> None:
    """Uneven steps, random power and gate: cut anywhere, the edges and the idle power are the same; a loop agrees."""
    rng = np.random.default_rng(seed)
    time = np.cumsum(rng.uniform(0.5, 1.5, count))
    power, level = rng.uniform(0, 1, count), rng.integers(0, 2, count).astype(float)
    level[rng.random(count) < 0.1] = np.nan
    cuts = np.sort(rng.integers(1, count, pieces - 1))
    parts = zip(*(np.split(v, cuts) for v in (time, power, level)), strict=True)
    whole = integrate([Chunk(time, power, level, 1)])
    cut = integrate([Chunk(*p, 1) for p in parts if len(p[0])])
    assert [(e.sample, e.rises) for e in cut.edges] == [(e.sample, e.rises) for e in whole.edges]
    assert [e.energy for e in cut.edges] == pytest.approx([e.energy for e in whole.edges])
    energy, high, expected = 0.0, bool(level[0] > 0.5), []
    for i in range(1, count):
        half = (time[i] - time[i - 1]) / 2
        now = high if np.isnan(level[i]) else bool(level[i] > 0.5)
        middle = (power[i] + power[i - 1]) / 2
        if now != high:
            expected.append(energy + half * (power[i - 1] + middle) / 2)
        energy, high = energy + half * (power[i] + power[i - 1]), now
    assert [e.energy for e in whole.edges] == pytest.approx(expected)


def test_noise_averages_out_and_idle_is_a_median(tmp_path: Path) -> None:
    """A burst of work outside of the gate does not move the idle power."""
    time, power, gate = traces.samples(noise=2e-4, seed=3)
    power[100:500] += 30e-3
    rows = list(zip(time, power, gate, strict=True))
    path = traces.write_csv(tmp_path / "t.csv", "t_s;power [W];gate", rows, ";")
    reading = measure(path, PowerOptions())
    assert reading.idle == pytest.approx(IDLE_W, abs=3e-5)
    assert reading.net == pytest.approx([NET] * 3, rel=0.01)
    q = quantities(reading)
    assert q["energy"]["low"] <= q["energy"]["value"] <= q["energy"]["high"]
    assert q["energy"]["n"] == 3


@pytest.mark.parametrize(
    ("text", "kind", "scale"),
    [
        ("Time (s)", "time", 1.0), ("timestamp_ms", "time", 1e-3), ("Elapsed time [µs]", "time", 1e-6),
        ("current [mA]", "current", 1e-3), ("Current in nA", "current", 1e-9), ("uA", "current", 1e-6),
        ("μA", "current", 1e-6), ("Power(mW)", "power", 1e-3), ("P/W", "power", 1.0), ("currentmA", "current", 1e-3),
        ("Main Avg Power (mW)", "power", 1e-3), ("Voltage", "voltage", None), ("energy (J)", "other", None),
        ("D3", "digital", None), ("D0-D7", "bits", None), ("JS220-1.gpi[0]", "digital", None), ("on", "other", None),
    ],
)  # fmt: skip
def test_units_in_headers(text: str, kind: str, scale: float | None) -> None:
    found = column(text)
    assert (found.kind, found.scale) == (kind, scale)


@pytest.mark.parametrize(
    ("head", "separator", "comma", "before"),
    [
        ("Time (s),Current (mA),D0", ",", False, ""),
        ("timestamp_ms;uA;D0", ";", True, "Device: X\nRecorded 2026\n"),
        ("Zeit;Time [us];current(nA);gate", ";", True, "# exported\n"),
        ("t_s\tI_A\ttrigger", "\t", True, "\ufeff"),
    ],
)
def test_spellings_of_csv(tmp_path: Path, head: str, separator: str, comma: bool, before: str) -> None:
    """Separators, decimal commas, comments, lines before the header and units; all give the same energy."""
    time, power, gate = traces.samples()
    names = head.split(separator)
    kinds = {c.kind: c for c in map(column, names)}
    rows = []
    for t, p, g in zip(time, power, gate, strict=True):
        cells = {
            "time": t / (kinds["time"].scale or 1),
            "current": p / SUPPLY / (kinds["current"].scale or 1),
            "digital": g,
        }
        words = [f"{cells.get(column(n).kind, 7):.9g}" for n in names]
        rows.append(tuple(w.replace(".", ",") if comma else w for w in words))
    rows.insert(5, ("# a comment between",))
    path = traces.write_csv(tmp_path / "t.csv", head, rows, separator, before)
    reading = measure(path, PowerOptions(supply=SUPPLY))
    assert reading.energy == pytest.approx([GROSS - EDGE] * 3, rel=1e-5)


def test_current_and_voltage_are_multiplied(tmp_path: Path) -> None:
    time, power, gate = traces.samples()
    volts = np.linspace(1.7, 1.9, len(time))
    rows = list(zip(time, power / volts * 1e3, volts * 1e3, gate, strict=True))
    path = traces.write_csv(tmp_path / "t.csv", "time(s),current(mA),voltage(mV),D1", rows)
    assert measure(path, PowerOptions()).energy == pytest.approx([GROSS - EDGE] * 3, rel=1e-6)


def test_one_window_of_many_inferences(tmp_path: Path) -> None:
    """As MLPerf does: energy and time of the window over the inferences in it; no spread over one part."""
    path = traces.generic(tmp_path / "t.csv")
    reading = measure(path, PowerOptions(gate="0.31:0.39", inferences=8, idle="2mW"))
    assert reading.gross == pytest.approx([ACTIVE_W * 0.01], rel=1e-9)
    assert reading.net == pytest.approx([(ACTIVE_W - 2e-3) * 0.01], rel=1e-9)
    q = quantities(reading)
    assert q["latency"]["value"] == pytest.approx(0.01)
    assert "low" not in q["energy"]
    none = quantities(measure(path, PowerOptions(gate="0.31:0.39", inferences=8, idle="none")))
    assert none["energy"] == none["energy_gross"]
    assert "idle_power" not in none


def test_glitches_and_cut_off_parts_are_told(tmp_path: Path) -> None:
    time, power, gate = traces.samples()
    gate[50] = gate[3500] = 1 - gate[3500]  # a high of one sample in the idle part, a low of one within a pulse
    gate[50] = 1
    gate[-3:] = 1
    gate[:4] = 1
    rows = list(zip(time, power, gate, strict=True))
    reading = measure(traces.write_csv(tmp_path / "t.csv", "time(s),power(W),D0", rows), PowerOptions())
    assert reading.energy == pytest.approx([GROSS - EDGE] * 3, rel=1e-3)
    text = " ".join(reading.notes)
    assert "2 glitch(es)" in text
    assert "begins within" in text
    assert "ends within" in text


def test_debouncing_by_hand() -> None:
    edges = [Edge(s, s, s, i % 2 == 0) for i, s in enumerate((10, 20, 21, 40, 50, 51))]
    kept, glitches = debounced(edges)
    assert [e.sample for e in kept] == [10, 40]
    assert glitches == 2


def _rows(n: int = 40) -> list[tuple[object, ...]]:
    return [(i * 0.01, 5.0, int(10 <= i < 20)) for i in range(n)]


@pytest.mark.parametrize(
    ("place", "row", "words"),
    [
        (7, (0.07, "nan", 0), "line 9: 'power(W)' is 'nan', not a finite number"),
        (7, (0.07, "inf", 0), "line 9"),
        (7, (0.07, "1e999", 0), "line 9"),
        (7, (0.07, "abc", 0), "line 9: 'power(W)' is 'abc'"),
        (7, (0.07, "", 0), "line 9"),
        (7, (0.07, 1.0), "line 9: 2 column(s); the header has 3"),
        (7, (0.07, 1.0, 0, 0), "line 9: 4 column(s)"),
        (7, (0.07, 1.0, "?"), "line 9: '?' is no level of a digital channel"),
        (7, (0.01, 1.0, 0), "time runs backwards"),
        (7, (0.07, "9" * 20000, 0), "line 9: longer than"),
        (7, (0.07, "1e308", 0), "overflows"),
        (7, (0.07, "\x1b[31m", 0), r"'\x1b[31m'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, place: int, row: tuple[object, ...], words: str) -> None:
    rows = _rows()
    rows[place] = row
    rows[place + 1] = (0.08, "1e308" if row[1] == "1e308" else 5.0, 0)
    if row[1] == "1e308":
        rows[place + 2 :] = [(1e300, 1.0, 0)]
    path = traces.write_csv(tmp_path / "t.csv", "time(s),power(W),D0", rows)
    with pytest.raises(UsageError) as caught:
        measure(path, PowerOptions(gate="D0", idle="none"))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("head", "options", "words"),
    [
        ("time(s),current(mA),D0", PowerOptions(), "--supply 1.8V"),
        ("time(s),current,D0", PowerOptions(supply=1.8), "tells no unit"),
        ("time,power(W),D0", PowerOptions(), "'time' tells no unit"),
        ("a,b,c", PowerOptions(), "names the columns"),
        ("time(s),power(W),D0", PowerOptions(gate="D1"), "unknown gate 'D1'"),
        ("time(s),power(W),D0", PowerOptions(gate="0.1:9"), "outside of the trace"),
        ("time(s),power(W),D0", PowerOptions(gate="0.3:0.1"), "each start before its end"),
        ("time(s),power(W),D0", PowerOptions(gate="0.001:0.002"), "holds 0 sample(s)"),
        ("time(s),power(W),x", PowerOptions(), "no digital channel that changes"),
        ("time(s),power(W),D0", PowerOptions(idle="fast"), "'fast' is no power"),
        ("time(s),power(W),D0", PowerOptions(idle="9W"), "not above the idle power"),
        ("time(s),power(W),D0", PowerOptions(format="ppk2"), "no export of a PPK2"),
        ("time(s),power(W),D0", PowerOptions(format="lpm01a"), "no log of an LPM01A"),
        ("time(s),power(W),D0", PowerOptions(format="saleae"), "unknown format of a trace"),
    ],
)
def test_what_cannot_be_measured(tmp_path: Path, head: str, options: PowerOptions, words: str) -> None:
    path = traces.write_csv(tmp_path / "t.csv", head, _rows())
    with pytest.raises(UsageError) as caught:
        measure(path, options)
    assert words in str(caught.value)


def test_files_that_are_no_traces(tmp_path: Path) -> None:
    for name, data, words in (
        ("empty.csv", b"", "is empty"),
        ("utf16.csv", "time(s),power(W)\n1,2\n".encode("utf-16"), "UTF-8"),
        ("zeros.csv", b"\0" * 5000 + b"\n", "UTF-8"),
        ("long.csv", b"1" * (2 * BLOCK), "longer than"),
        ("head.csv", b"time(s),power(W)\n", "0 sample(s)"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError) as caught:
            measure(tmp_path / name, PowerOptions(gate="0:1"))
        assert words in str(caught.value)
    with pytest.raises(UsageError, match="does not exist"):
        measure(tmp_path / "none.csv", PowerOptions())
    with pytest.raises(UsageError, match="is no file"):
        measure(tmp_path, PowerOptions())


def test_gaps(tmp_path: Path) -> None:
    """A gap outside of the gate is told, one within it is refused."""
    rows = [(t, 5.0, int(1.0 < t < 2.0)) for t in np.arange(0, 3, 0.01) if not 2.4 < t < 2.8]
    reading = measure(traces.write_csv(tmp_path / "t.csv", "time(s),power(W),D0", rows), PowerOptions(idle="none"))
    assert any("1 gap(s)" in n for n in reading.notes)
    rows = [r for r in rows if not 1.3 < r[0] < 1.7]
    with pytest.raises(UsageError, match="are a gap"):
        measure(traces.write_csv(tmp_path / "t.csv", "time(s),power(W),D0", rows), PowerOptions(idle="none"))


def test_two_channels_that_change_need_a_name(tmp_path: Path) -> None:
    rows = [(*r, 1 - int(r[2])) for r in _rows()]  # type: ignore[call-overload]
    path = traces.write_csv(tmp_path / "t.csv", "time(s),power(W),D0,D1", rows)
    with pytest.raises(UsageError, match="several digital channels that change: D0, D1"):
        measure(path, PowerOptions(idle="none"))


def test_lpm01a_rows_that_are_no_samples(tmp_path: Path) -> None:
    text = (traces.lpm01a(tmp_path / "a.log")).read_text(encoding="ascii").replace("\r\n", "\n").split("\n")
    text[40] = "12x4-06"
    (tmp_path / "b.log").write_text("\n".join(text), encoding="ascii")
    with pytest.raises(UsageError, match="line 41: '12x4-06' is no row of samples"):
        measure(tmp_path / "b.log", PowerOptions(supply=SUPPLY))
    (tmp_path / "c.log").write_text("ack format bin_hexa\nTimeStamp: 000s 000ms, buff 00%\n", encoding="ascii")
    with pytest.raises(UsageError, match="binary format"):
        measure(tmp_path / "c.log", PowerOptions(supply=SUPPLY))


def test_jls(tmp_path: Path) -> None:
    pyjls = pytest.importorskip("pyjls", reason="the reader of .jls files is not installed")
    _, power, gate = traces.samples()
    path = tmp_path / "t.jls"
    with pyjls.Writer(str(path)) as w:
        w.source_def(source_id=1, name="JS220", vendor="v", model="m", version="1", serial_number="s")
        for i, (name, unit) in enumerate((("current", "A"), ("voltage", "V")), 1):
            w.signal_def(i, source_id=1, sample_rate=traces.RATE, name=name, units=unit)
        w.signal_def(3, source_id=1, sample_rate=traces.RATE, name="gpi[0]", data_type=pyjls.DataType.U1)
        w.fsr(1, 0, (power / SUPPLY).astype(np.float32))
        w.fsr(2, 0, np.full(len(power), SUPPLY, np.float32))
        w.fsr(3, 0, np.packbits(gate.astype(np.uint8), bitorder="little"))
    reading = measure(path, PowerOptions(gate="gpi[0]"))
    assert reading.energy == pytest.approx([GROSS - EDGE] * 3, rel=1e-3)


def test_jls_without_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyjls", None)
    (tmp_path / "t.jls").write_bytes(b"x")
    with pytest.raises(ToolchainError, match="pip install pyjls"):
        open_trace(tmp_path / "t.jls")


def test_memory_is_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the file, the same memory."""
    monkeypatch.setattr("xdeploy.bench.traces.BLOCK", 1 << 15)
    line = "".join(f"{{t}}{i:03d},5.0,{int(300 <= i < 600)}\n" for i in range(1000))
    peaks = []
    for blocks in (10, 40):
        path = tmp_path / f"{blocks}.csv"
        with path.open("w", encoding="ascii") as file:
            file.write("time(ms),power(W),D0\n")
            for b in range(1, blocks + 1):
                file.write(line.replace("{t}", str(b)))
        tracemalloc.start()
        reading = measure(path, PowerOptions(gate="D0", idle="none"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(reading.energy) == blocks
        assert reading.energy == pytest.approx([1.5] * blocks, rel=1e-6)
    assert peaks[1] < 1.3 * peaks[0] + 16 * (1000 * 40)  # idle samples are kept up to a limit


def test_modelled_figures_are_kept() -> None:
    """energy and latency become the measured ones; a latency that the runner measured stays."""
    one = np.ones(2)
    reading = Reading("X", "channel D0", one, 0.5 * one, 3 * one, 1.0, 1)
    old = {"energy": quantity(7.0, "J", "modelled"), "latency": quantity(8.0, "s", "modelled")}
    m = Measurement(
        "t", "unicorn", "bit-exact", None, old, tells={"can": ["outputs"], "cannot": {"energy": "no table"}}
    )
    new = with_power(m, reading, Path("x/trace.csv"))
    assert new.quantities["energy"]["how"] == "measured"
    assert new.quantities["energy_modelled"] == old["energy"]
    assert new.quantities["latency_modelled"] == old["latency"]
    assert new.environment["power"]["file"] == "trace.csv"
    assert "energy" not in new.tells["cannot"]
    again = with_power(new, reading, Path("x/trace.csv"))
    assert again.quantities == new.quantities
    ran = with_power(replace(m, quantities={"latency": quantity(8.0, "s", "measured")}), reading, Path("trace.csv"))
    assert ran.quantities["latency"]["value"] == 8.0
    assert ran.quantities["latency_gate"]["value"] == pytest.approx(0.5)


@pytest.mark.parametrize(("text", "value"), [("1.8V", 1.8), ("1800 mV", 1.8), ("1.8", 1.8), ("2e3mV", 2.0)])
def test_voltages(text: str, value: float) -> None:
    assert si(text, "voltage", "1.8V") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "V", "1.8A", "-1V", "nan", "1.2.3", "inf", "1e999"])
def test_no_voltages(text: str) -> None:
    with pytest.raises(UsageError, match="is no voltage"):
        si(text, "voltage", "1.8V")


@pytest.mark.parametrize("text", ["1:2,1.5:3", "1", "1:2:3", "a:b", "nan:2", "1:inf"])
def test_no_windows(text: str) -> None:
    with pytest.raises(UsageError):
        windows_of(text)
