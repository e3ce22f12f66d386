"""What a build shows: live lines in a terminal, plain ones elsewhere, a summary that fits a screen, the path last."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import LIMIT, command, environment
from xdeploy.commands.summary import MOST_TARGETS, cut, summary
from xdeploy.console import Console

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOURS = re.compile(r"\x1b\[[0-9;]*[34][0-9](;[0-9]+)*m")


def shown(screen: str) -> list[str]:
    """Every stretch of text that stood in one line."""
    return [x for x in re.split(r"[\r\n]+", ESCAPES.sub("", screen)) if x.strip()]


def build(kept: Path) -> list[str]:
    return ["build", str(kept), "--target", "cortex-m4", "-o", str(kept.parent / "out")]


def test_a_build_in_a_terminal(kept, first):
    assert first.code == 0, first.screen
    lines = shown(first.screen)
    assert any(x.startswith("stage ") and "so far" in x for x in lines), "no live line"
    assert re.search(r"about \d+:\d\d left", first.screen)
    path = (kept.parent / "out" / "report.html").resolve()
    assert lines[-1] == f"report: {path}"
    assert path.is_file()
    tail = lines[lines.index(next(x for x in lines if re.match(r"accuracy +[\d.]+ s", x))) + 1 :]
    assert len(tail) <= 23
    assert all(len(x) <= 80 for x in lines if not x.startswith("report: "))
    assert first.screen.count("\x1b[?25h") >= first.screen.count("\x1b[?25l"), "the cursor stays hidden"


@pytest.mark.parametrize("columns", [20, 40, 200])
def test_other_widths(kept, first, terminal, columns):
    done = terminal(*build(kept), size=(24, columns))
    assert done.code == 0
    assert all(len(x) <= columns for x in shown(done.screen) if not x.startswith(("report: ", "/")))


def test_no_color(kept, first, terminal):
    done = terminal(*build(kept), NO_COLOR="1")
    assert done.code == 0
    assert not COLOURS.search(done.screen)


def test_a_dumb_terminal_has_no_live_lines(kept, first, terminal):
    done = terminal(*build(kept), TERM="dumb")
    assert done.code == 0
    assert "\x1b" not in done.screen


def test_plain_lines_elsewhere(kept, first, plain):
    done = plain(*build(kept))
    assert done.code == 0
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", done.out + done.err)
    assert [x.split()[0] for x in done.err.splitlines()] == ["lower", "cortex-m4", "accuracy"]
    assert done.out.splitlines()[-1] == f"report: {(kept.parent / 'out' / 'report.html').resolve()}"
    assert "bit-exact" in done.out


def test_json_is_all_that_stdout_holds(kept, first, plain):
    done = plain(*build(kept), "--json")
    assert json.loads(done.out)["schema"] == "xdeploy.report/1"
    assert done.err == ""


@pytest.mark.parametrize(
    ("tail", "code"),
    [("| head -c 1 >/dev/null", 0), (">&-", 0), ("2>&-", 0), ("<&- >&- 2>&-", 0), ("2>&1 >/dev/null | head -c 0", 0),
     (">/dev/full", 1)],
)  # fmt: skip
def test_nobody_listens(kept, first, tail, code):
    """A reader that has gone or a closed stream is no error of the build; a full disk is one, and told."""
    words = " ".join([*(f"'{w}'" for w in command(*build(kept), "--json")), tail])
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", words], capture_output=True, text=True, timeout=LIMIT, check=False,
        env=environment(kept.parent),
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert ("standard output cannot be written" in done.stderr) == (code == 1)


def quantity(value: float, how: str = "measured") -> dict:
    return {"value": value, "unit": "1", "how": how}


def document(count: int) -> dict:
    row = {
        "flash": quantity(21454), "ram": quantity(6400), "instructions": quantity(46018110, "emulated"),
        "latency": quantity(0.010628, "modelled"), "energy": quantity(4.4e-4, "modelled"), "verdict": "bit-exact",
    }  # fmt: skip
    return {
        "model": {"name": "net", "float_bytes": quantity(62504), "macs": 470592},
        "accuracy": {"float": quantity(99.443), "fake_quant": None, "deployed": {**quantity(98.886), "n": 359}},
        "weights": {"packed_bytes": quantity(6256), "coded_bytes": quantity(4991), "ratio_to_float": quantity(0.1)},
        "relevance": {"survival": {"spearman": quantity(0.75)}}, "layers": [{"macs": 400000}],
        "targets": {f"cortex-m{i}": row for i in range(count)},
    }  # fmt: skip


def test_the_summary_fits_a_screen_with_any_number_of_targets():
    lines = summary(document(40), 80)
    assert len(lines) <= 21  # and three more below it
    assert max(map(len, lines)) <= 80
    assert f"and {40 - MOST_TARGETS} more" in lines[-2]
    assert "1/10.0" in lines[1]
    assert lines[5].split() == [
        "cortex-m0",
        "21,454",
        "6,400",
        "46,018,110e",
        "10.6",
        "ms",
        "m",
        "440",
        "uJ",
        "m",
        "bit-exact",
    ]
    assert lines[-1] == "e emulated, m modelled, others measured"


def test_cut():
    assert [cut("abcdef", n) for n in (6, 5, 1, 0)] == ["abcdef", "abcd…", "…", ""]


def test_time_left_counts_the_stages_to_come(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("xdeploy.console.time.monotonic", lambda: now[0])
    console = Console()
    console.quiet = True
    console.expect({"lower": 10.0, "board": 20.0, "accuracy": 0.0, "last": 40.0})
    console.stage("lower")
    now[0] = 104.0
    console("search", 1, 4)
    assert console.lines() == [
        "#####---------------  25%  lower: search",
        "stage 1 of 4, 0:04 so far, about 1:06 left",
    ]
    now[0] = 130.0
    assert "left" not in console.lines()[1]  # it takes far longer than it was to
    console.stage("lower", 30.0)
    console.stage("board")
    assert console.lines()[1] == "stage 2 of 4, 0:30 so far, about 1:00 left"
