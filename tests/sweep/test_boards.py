"""Sweeps whose trials are timed on boards: TVM's own tracker with two servers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.farm import Farm, farm
from tests.bench.sshd import free_port
from tests.bench.test_rpc import needs_x86
from tests.sweep.test_sweep import Given, given
from xdeploy.cli import main
from xdeploy.handover import Measurement
from xdeploy.sweep.boards import Boards

__all__ = ["farm", "given"]  # fixtures
FORMATS = {"plan.formats": [["int8"], ["int2"]]}


def command(given: Given, output: Path, *more: str, target: str = "x86-64") -> list[str]:
    """A sweep over two formats, smallest latency wanted."""
    space = output.with_suffix(".toml")
    space.write_text('plan.formats = [["int8"], ["int2"]]\n', encoding="utf-8")
    words = given.command(output, "--space", str(space), "--objective", "accuracy,latency", *more)
    words[words.index("--target") + 1] = target
    return words


@needs_x86
@pytest.mark.slow
def test_boards_of_a_tracker(given: Given, farm: Farm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every trial runs on one of the boards, whose latency is compared; the tracker may begin late, on another port."""
    output, jobs = tmp_path / "out", ("--jobs", "2")
    assert main(command(given, output, "--via", f"x86-64=tracker://127.0.0.1:{free_port()}/here", *jobs)) == 6
    assert "no TVM RPC tracker answers" in capsys.readouterr().err
    built = sorted((output / "stages" / "x86-64").iterdir())

    servers = {farm.board("here"), farm.board("here")}
    farm.until("here", 2)
    via = f"tracker://127.0.0.1:{farm.port}/here"
    assert main(command(given, output, "--via", via, *jobs)) == 0
    assert set(built) <= set((output / "stages" / "x86-64").iterdir())  # what was done before was used
    front = json.loads((output / "front.json").read_text(encoding="utf-8"))
    assert front["study"]["boards"] == {"x86-64": via}
    assert [t["state"] for t in front["trials"]] == ["complete"] * 2
    for row in front["trials"]:
        told = Measurement.load(output / "boards" / f"{row['trial']:04}.json")
        assert (told.runner, told.verdict) == ("rpc", "bit-exact")
        assert told.environment["tracker"] == via
        assert told.environment["server"] in servers
        assert row["values"]["latency"] == told.quantities["latency"]
    assert via in (output / "front.html").read_text(encoding="utf-8")


@needs_x86
def test_out_of_reach_is_no_result(given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a process that works alone: the command ends, no trial has failed, and the next call finds it free."""
    words = command(given, tmp_path / "out", "--via", f"rpc://127.0.0.1:{free_port()}", "--trials", "1")
    for _ in range(2):
        assert main(words) == 6
        assert "no TVM RPC server answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "words", "told"),
    [
        ("x86-64", ("--via", "serial:/dev/ttyACM0"), "a sweep sends programs to boards by"),
        ("x86-64", ("--via", "unicorn"), "a sweep sends programs to boards by"),
        ("x86-64", ("--via", "tracker://localhost:9190"), "is no tracker://host:port/kind"),
        ("x86-64", ("--via", "tracker://farm:9190/pi"), "is not this machine"),
        ("x86-64", ("--via", "x86=tracker://localhost:9190/pi"), "unknown target of --via 'x86'"),
        ("x86-64", ("--via", "rpc://localhost:9090", "--jobs", "2"), "disturb each other's times"),
        ("cortex-m4", ("--via", "tracker://localhost:9190/pi"), "is firmware, which nothing there can run"),
    ],
)  # fmt: skip
def test_what_is_refused(
    given: Given, tmp_path: Path, target: str, words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is written."""
    assert main(command(given, tmp_path / "out", *words, target=target)) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_sweep_is_the_same_by_the_kind_of_board() -> None:
    one, two = (Boards({"a": f"tracker://localhost:{port}/pi4"}) for port in (1, 2))
    assert one.kinds == two.kinds == {"a": "pi4"}
    assert Boards({"a": "ssh://pi@one"}).kinds != Boards({"a": "ssh://pi@two"}).kinds
