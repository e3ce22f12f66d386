"""`xdeploy explain`: a page and numbers of what matters in a network, and what it says to what cannot be explained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Ended
from xdeploy.cli import main
from xdeploy.handover import RelevanceMap


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A float network and its data, and the words of the command."""
    from tests.e2e.files import blobs, float_onnx  # loads torch

    folder = tmp_path_factory.mktemp("explain")
    float_onnx(folder / "net.onnx", 0)
    blobs(folder / "data.npz", 0)
    words = ["explain", str(folder / "net.onnx"), "--data", str(folder / "data.npz"), "-o", str(folder / "out")]
    return folder / "out", [*words, "--set", "relevance.samples=32", "--set", "threads=1"]


def test_the_page_and_its_numbers(explained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    """Shares are those of the saved scores, and add up to one; nothing later than the scores was made."""
    out, words = explained
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    page = Path(said["page"])
    assert page == out / "explain" / "explain.html"
    text = page.read_text(encoding="utf-8")
    assert text.count("<h1>") == 1
    assert "<script src" not in text
    scores = json.loads((out / "explain" / "scores.json").read_text(encoding="utf-8"))
    saved = RelevanceMap.load(out / "relevance.npz").share()
    told = {x["origin"]: x["relevance_share"] for x in scores["layers"]}
    assert told == pytest.approx({k: saved[k] for k in told})
    assert sum(told.values()) == pytest.approx(1.0)
    assert all(name in text for name in told)
    assert not (out / "plan.json").exists()
    assert not (out / "report.html").exists()


def test_again_without_a_terminal(explained: tuple[Path, list[str]], plain: Callable[..., Ended]) -> None:
    """Plain lines on stderr, the path of the page last on stdout; nothing is scored twice by the same code."""
    out, words = explained
    main([*words, "--quiet"])
    before = (out / "relevance.npz").stat().st_mtime_ns
    done = plain(*words)
    assert done.code == 0, done.err
    assert done.out.rstrip().endswith(str(out / "explain" / "explain.html"))
    assert "\x1b" not in done.out + done.err
    assert (out / "relevance.npz").stat().st_mtime_ns == before
    assert plain(*words, "--quiet").out == ""


def test_methods_are_chosen_by_name(explained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    out, words = explained
    assert main([*words, "--method", "magnitude", "--quiet"]) == 0
    assert RelevanceMap.load(out / "relevance.npz").method == "magnitude"
    assert main([*words, "--method", "lrq"]) == 2
    assert "did you mean 'lrp'?" in capsys.readouterr().err


def test_what_cannot_be_explained(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A quantised file has no float weights; a network needs samples."""
    np.savez(tmp_path / "d.npz", x=np.zeros((9, 3, 8, 8), np.float32), y=np.arange(9) % 5)
    words = ["explain", str(kept), "--data", str(tmp_path / "d.npz"), "-o", str(tmp_path / "o")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "no float weights to explain" in said
    assert "--further" in said
    assert main(["explain", "a.b:c", "-o", str(tmp_path / "o")]) == 2
    assert "--data" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
