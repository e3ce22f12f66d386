"""No damaged file of a run folder or of a cache is used: the stage runs again, the kernel is measured again."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest
import small
import torch
import warm

from tests.promises import steps
from tests.promises.damage import damages
from xdeploy.compress.checkpoint import Checkpoint
from xdeploy.store import Store
from xdeploy.tune.cache import Cache
from xdeploy.tune.jobs import Figures

KEYS = ("ab" * 32, "cd" * 32)


def test_every_file_of_a_run_folder(tmp_path: Path) -> None:
    output = tmp_path / "out"
    steps.run(output, 0)
    expected = steps.content(output)
    files = sorted(p for p in output.rglob("*") if p.is_file())
    assert len(files) == 5
    for path, other in zip(files, files[1:] + files[:1], strict=True):
        good = path.read_bytes()
        for what, data in damages(path, other.read_bytes()):
            path.write_bytes(data)
            if data != good and path.name != "run.json":
                assert not _fresh(output), (path.name, what)
            steps.run(output, 0)
            assert steps.content(output) == expected, (path.name, what)
            assert _fresh(output), (path.name, what)
            good = path.read_bytes()


def _fresh(output: Path) -> bool:
    return all(Store(output).is_fresh(name, key) for name, key in steps.keys(0).items())


def test_a_record_is_believed_as_a_whole_or_not(tmp_path: Path) -> None:
    """Any changed value in run.json, a future version among them, makes every stage run again."""
    steps.run(tmp_path / "out", 0)
    path = tmp_path / "out" / "run.json"
    text = path.read_text()
    for old, new in (('"seconds": 0.0', '"seconds": 9.0'), ("xdeploy.run/1", "xdeploy.run/2"), ('"plan"', '"plon"')):
        assert old in text
        path.write_text(text.replace(old, new))
        assert Store(tmp_path / "out").record["stages"] == {}


def test_an_unfinished_run_is_checked_too(tmp_path: Path) -> None:
    """What a killed run left in `unfinished` is used if it is whole."""
    output = tmp_path / "out"
    steps.run(output, 7)
    store = Store(output)
    store.begin(steps.keys(0))
    store.finish("score", steps.keys(0)["score"], steps._write(store, "score", 0), 0.0)
    path = output / "unfinished" / "score.npz"
    path.write_bytes(path.read_bytes()[:-1])
    (path.parent / ".tmpAbC123").write_bytes(b"what safetensors writes before it renames")
    steps.run(output, 0)
    steps.run(tmp_path / "other", 0)
    assert steps.content(output) == steps.content(tmp_path / "other")
    assert not small.litter(output)


def test_every_file_of_the_tuning_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for i, key in enumerate(KEYS):
        cache.put(key, f"kernel{i}", Figures(instructions=100 + i, code=40, helpers={"h": 8}))
    for key, other in (KEYS, KEYS[::-1]):
        path, good, whole = cache.path(key), cache.get(key), cache.path(key).read_bytes()
        for what, data in damages(path, cache.path(other).read_bytes()):
            path.write_bytes(data)
            assert cache.get(key) in (None, good), what
            if json_of(data) != json_of(whole):
                assert cache.get(key) is None, what
        for number in range(len(whole)):  # every byte: a digit that changed into another is seen as well
            path.write_bytes(whole[:number] + bytes([whole[number] ^ 1]) + whole[number + 1 :])
            assert cache.get(key) in (None, good)
        path.write_bytes(whole.replace(b"xdeploy.tuned/1", b"xdeploy.tuned/2"))
        assert cache.get(key) is None
        path.write_bytes(whole)
        assert cache.get(key) == good


def json_of(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None


def test_every_bit_of_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c.safetensors", "key")
    checkpoint.save({"a": torch.arange(6.0), "b": torch.tensor([1, 2])}, {"epoch": 3})
    tensors, head = checkpoint.load() or ({}, {})
    assert head["epoch"] == 3
    assert torch.equal(tensors["a"], torch.arange(6.0))
    whole = checkpoint.path.read_bytes()
    for number in range(len(whole)):
        checkpoint.path.write_bytes(whole[:number] + bytes([whole[number] ^ 1]) + whole[number + 1 :])
        found = checkpoint.load()
        assert found is None or (found[1]["epoch"] == 3 and torch.equal(found[0]["a"], tensors["a"])), number


def test_eight_runs_in_one_folder(tmp_path: Path) -> None:
    """All end well or say who holds the folder; what is there in the end is whole."""
    output = tmp_path / "out"
    texts = _eight([partial(_command, output) for _ in range(8)], tmp_path)
    assert any(code == 0 for code, _ in texts)
    assert all(code == 0 or (code == 2 and "is locked by pid" in text) for code, text in texts), texts
    steps.run(tmp_path / "other", 0)
    assert steps.content(output) == steps.content(tmp_path / "other")
    assert not small.litter(output)


def _command(output: Path) -> int:
    from xdeploy.errors import XdeployError

    try:
        return steps.run(output, 0)
    except XdeployError as error:
        print(error, flush=True)
        return error.exit_code


def test_eight_processes_on_one_cache(tmp_path: Path) -> None:
    ended = _eight([partial(_measure, tmp_path / "cache") for _ in range(8)], tmp_path)
    assert [code for code, _ in ended] == [0] * 8, ended
    assert Cache(tmp_path / "cache").get(KEYS[0]) == Figures(instructions=19)
    assert not small.litter(tmp_path / "cache")


def _measure(folder: Path) -> int:
    cache = Cache(folder)
    for i in range(20):
        cache.put(KEYS[0], "kernel", Figures(instructions=i))
        if cache.get(KEYS[0]) is None:
            return 1
    return 0


def _eight(works: list[partial[int]], folder: Path) -> list[tuple[int, str]]:
    place = warm.Place.below(folder / "spot", folder)
    children = [warm.start(work, place, folder / f"log{i}") for i, work in enumerate(works)]
    codes = [warm.finish(pid) for pid, _ in children]
    return [(code, (folder / f"log{i}").read_text()) for i, code in enumerate(codes)]


@pytest.mark.slow
def test_every_file_of_a_real_run_folder(tmp_path: Path) -> None:
    """Each file that a build leaves, but for the reports, which are written anew by every run."""
    from xdeploy.pipeline import run
    from xdeploy.recipe import Recipe
    from xdeploy.request import Request

    small.prepare(tmp_path)
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        recipe = Recipe().with_options({"plan.max_drop": 100.0, "relevance.samples": 16, "bench.accuracy": False})
        request = Request(
            "small_net:make",
            data=tmp_path / "data.npz",
            recipe=recipe,
            targets=(small.TARGET,),
            output=tmp_path / "out",
        )
        run(request)
    finally:
        os.chdir(before)
    record = Store(tmp_path / "out").record["stages"]
    recorded = {name for row in record.values() for name in row["files"]}
    files = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    unknown = {n for n in files - recorded if not n.startswith((".host/", "report.")) and n != "run.json"}
    assert not unknown
    for name in sorted(recorded):
        path = tmp_path / "out" / name
        whole = path.read_bytes()
        for what, data in damages(path, b"another"):
            path.write_bytes(data)
            store = Store(tmp_path / "out")
            assert not all(store.is_fresh(s, row["key"]) for s, row in record.items()), (name, what)
        path.write_bytes(whole)
