"""Two processes give what one gives, up to the order of sums, and each other's bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.bench.sshd import free_port
from xdeploy import ranks
from xdeploy.compress.normalise import EPS, MOMENTUM, Norm
from xdeploy.stages import CHECKPOINT


def _start(kind: str, folder: Path, count: int, *arguments: str) -> list[dict[str, Any]]:
    """Run worker.py in `count` processes, as torchrun would, and give what each has written."""
    port, children = str(free_port()), []
    for rank in range(count):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
               "WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank)}  # fmt: skip
        command = [
            sys.executable,
            "-m",
            "tests.ranks.worker",
            kind,
            str(folder / f"{kind}-{count}-{rank}.npz"),
            *arguments,
        ]
        children.append(subprocess.Popen(command, env=env, cwd=Path(__file__).parents[2]))
    assert [c.wait(300) for c in children] == [0] * count
    found = []
    for rank in range(count):
        with np.load(folder / f"{kind}-{count}-{rank}.npz") as archive:
            found.append({k: archive[k] for k in archive.files})
    return found


@pytest.mark.parametrize("methods", ["lrp,gradient,taylor,wanda,magnitude"])
def test_scores(tmp_path: Path, methods: str) -> None:
    (one,) = _start("score", tmp_path, 1, methods)
    first, second = _start("score", tmp_path, 2, methods)
    assert set(one) == set(first)
    for name, values in one.items():
        assert np.array_equal(first[name], second[name]), name
        scale = np.abs(values).max()
        assert np.abs(first[name] - values).max() <= 1e-6 * scale, name


@pytest.mark.parametrize("batch", ["64", pytest.param("33", marks=pytest.mark.slow)])
def test_fine_tuning(tmp_path: Path, batch: str) -> None:
    """Float32 sums in another order: after six steps weights are within 1e-4 of their size."""
    (one,) = _start("tune", tmp_path, 1, batch)
    first, second = _start("tune", tmp_path, 2, batch)
    start = {k.removeprefix("start/"): v for k, v in one.items() if k.startswith("start/")}
    for name in start:
        assert np.array_equal(first[name], second[name]), name
        scale = np.abs(one[name]).max()
        assert np.abs(first[name] - one[name]).max() <= 1e-4 * scale, name
        assert np.abs(one[name] - start[name]).max() > 10 * np.abs(first[name] - one[name]).max(), name


def test_one_process_is_as_if_there_were_no_ranks() -> None:
    assert (ranks.count(), ranks.rank(), ranks.is_parted()) == (1, 0, False)
    assert list(ranks.share(range(5))) == [0, 1, 2, 3, 4]
    x, y = torch.arange(6.0).reshape(3, 2), torch.arange(3)
    with ranks.parted(x, y) as (a, b, share):
        assert a is x
        assert b is y
        assert share == 1.0
    ranks.add_up([x])
    assert x.sum() == 15


def test_normalisation_in_parts_is_that_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one rank that holds it all, against torch's BatchNorm: values, running statistics and gradients."""
    torch.manual_seed(0)
    z = torch.randn(8, 3, 4, 4) * 3 + 1
    norm, other = (Norm(torch.tensor([0.5, -1.0, 0.1]), torch.tensor([1.0, 2.0, 0.3])) for _ in range(2))
    monkeypatch.setattr(ranks._STATE, "parted", True)
    ours = z.clone().requires_grad_()
    y = norm(ours)
    theirs = z.clone().requires_grad_()
    expected = F.batch_norm(theirs, other.mean, other.var, other.gamma(), other.beta(), True, MOMENTUM, EPS)
    assert torch.allclose(y, expected, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(z)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert torch.allclose(norm.mean, other.mean, rtol=1e-5)
    assert torch.allclose(norm.var, other.var, rtol=1e-5)
    assert torch.allclose(norm.factor.grad, other.factor.grad, rtol=1e-4)  # type: ignore[arg-type]


def test_ranks_that_differ_are_told(tmp_path: Path) -> None:
    found = _start("differ", tmp_path, 2)
    assert [str(f["told"]) for f in found] == ["weights differ between the processes"] * 2


@pytest.mark.slow
def test_torchrun_builds_the_demo(tmp_path: Path) -> None:
    """The whole command in two processes: rank 0 alone writes, and codes are nearly those of one process."""
    arguments = ["build", "--target", "x86-64", "--set", "threads=1", "--set", "recover.epochs=1", "--quiet"]
    one, two = tmp_path / "one", tmp_path / "two"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "xdeploy", *arguments, "-o", str(one)], check=True, env=env)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
                "--master-port", str(free_port())]  # fmt: skip
    subprocess.run([*torchrun, "-m", "xdeploy", *arguments, "-o", str(two)], check=True, env=env)
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
    a, b = (json.loads((x / "report.json").read_text())["accuracy"]["deployed"]["value"] for x in (one, two))
    assert abs(a - b) < 1.0


TWO = ["build", "--target", "x86-64", "--set", "threads=1", "--set", "recover.epochs=8", "--quiet"]


def _ranks(output: Path) -> list[subprocess.Popen[str]]:
    """The demo in two processes, with nobody who would end one for the other."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
           "WORLD_SIZE": "2"}  # fmt: skip
    command = [sys.executable, "-m", "xdeploy", *TWO, "-o", str(output)]
    return [
        subprocess.Popen(command, env={**env, "RANK": str(k), "LOCAL_RANK": str(k)}, stderr=subprocess.PIPE, text=True)
        for k in range(2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_is_killed_while_they_train(tmp_path: Path, victim: int) -> None:
    """The other one ends by itself and says why; the next run ends with the bytes of an undisturbed one."""
    whole, output = tmp_path / "whole", tmp_path / "out"
    assert [(p.communicate()[1], p.returncode)[1] for p in _ranks(whole)] == [0, 0]
    processes, end = _ranks(output), time.monotonic() + 600
    while not list(output.rglob(CHECKPOINT)):
        assert time.monotonic() < end
        assert all(p.poll() is None for p in processes)
        time.sleep(0.05)
    processes[victim].kill()
    processes[victim].communicate()
    told = processes[1 - victim].communicate(timeout=60)[1]
    assert processes[1 - victim].returncode == 1
    assert "another of the run's 2 processes has ended" in told
    assert "Traceback" not in told
    assert [(p.communicate()[1], p.returncode)[1] for p in _ranks(output)] == [0, 0]
    name = "compressed.safetensors"
    assert (output / name).read_bytes() == (whole / name).read_bytes()
