"""Stages that trials share: copied whole, and only whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from xdeploy.recipe import Recipe
from xdeploy.request import Request
from xdeploy.store import Store
from xdeploy.sweep import shared


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands for the pipeline: writes each stage's files and notes that it did."""
    done: list[str] = []

    def run(request: Request, until: str, progress: object) -> None:
        store = Store(request.output)
        keys = shared.stage_keys(request, [])
        for stage in {"score": ("source", "score"), "lower": ("plan", "compress", "export", "lower")}[until]:
            if not store.is_fresh(stage, keys[stage]):
                done.append(f"{request.output.name} {stage}")
                (store.folder / "sub").mkdir(exist_ok=True)
                (store.folder / "sub" / stage).write_text(f"{stage} of {keys[stage]}")
                (store.folder / f"{stage}.npz").write_text(stage)
                store.finish(stage, keys[stage], [f"sub/{stage}", f"{stage}.npz"], 1.0)

    monkeypatch.setattr(shared, "run", run)
    return done


def _group(folder: Path, recipe: Recipe, until: str, names: tuple[str, ...]) -> None:
    request = Request(None, recipe=recipe, targets=("cortex-m4",), output=folder)
    keys = shared.stage_keys(request, [])
    shared._group(request, keys, names, until, folder.parent / "stages", shared.Silent())


def test_equal_stages_are_worked_out_once(tmp_path: Path, runs: list[str]) -> None:
    recipe, other = Recipe(), Recipe().with_options({"plan.max_drop": 9.0})
    for name, r in (("a", recipe), ("b", recipe), ("c", other)):
        _group(tmp_path / name, r, "score", shared._SCORED)
        _group(tmp_path / name, r, "lower", shared._LOWERED)
    lowered = ["plan", "compress", "export", "lower"]
    assert runs == ["a source", "a score", *(f"a {s}" for s in lowered), *(f"c {s}" for s in lowered)]
    for stage in ("score", "lower"):
        assert (tmp_path / "a" / "sub" / stage).read_bytes() == (tmp_path / "b" / "sub" / stage).read_bytes()
    # a later run takes over what the record names, and nothing else
    assert Store(tmp_path / "a").record["stages"] == Store(tmp_path / "b").record["stages"]
    assert (tmp_path / "a" / "sub" / "lower").read_bytes() != (tmp_path / "c" / "sub" / "lower").read_bytes()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed", "record"])
def test_damaged_stages_are_made_again(tmp_path: Path, runs: list[str], damage: str) -> None:
    _group(tmp_path / "a", Recipe(), "score", shared._SCORED)
    (file,) = (tmp_path / "stages").rglob("sub/score")
    (record,) = (tmp_path / "stages").rglob("stages.json")
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[:-1])
    elif damage == "flipped":
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "removed":
        file.unlink()
    else:
        record.write_text("{")
    _group(tmp_path / "b", Recipe(), "score", shared._SCORED)
    assert runs == ["a source", "a score", "b source", "b score"]
    _group(tmp_path / "c", Recipe(), "score", shared._SCORED)
    assert len(runs) == 4  # the new one is whole
    assert (tmp_path / "c" / "sub" / "score").read_bytes() == content
