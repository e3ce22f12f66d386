"""The smallest real build: a network of one convolution and one linear layer, stripes to tell apart, one Cortex-M."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

TARGET = "cortex-m4"
_MODULE = '''"""A small network."""

import torch
from torch import nn


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(64, 3)

    def forward(self, x):
        return self.head(torch.max_pool2d(torch.relu(self.conv(x)), 2).flatten(1))


def make():
    torch.manual_seed(0)
    return Small()
'''
# what differs between two runs of the same: measured times, and the reports that repeat them
TIMED = ("bench.json", "run.json", "report.json", "report.md", "report.html")
LEFT = ("unfinished", ".lock", ".commit", ".writable")


def prepare(folder: Path, samples: int = 120) -> None:
    """Write the network's module and its data into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small_net.py").write_text(_MODULE)
    rng, y = np.random.default_rng(0), np.arange(samples) % 3
    x = rng.integers(0, 80, (samples, 8, 8, 1))
    for i, label in enumerate(y):
        x[i, :, 2 * label : 2 * label + 2] += 120
    np.savez(folder / "data.npz", x=x.astype(np.uint8), y=y)


def command(output: Path, seed: int = 0, *more: str) -> list[str]:
    """Arguments of `xdeploy` for the small build, to be run in the folder that `prepare` wrote."""
    settings = ("threads=1", "relevance.samples=16", "plan.max_drop=100", "bench.accuracy=false", f"seed={seed}")
    words = ["build", "small_net:make", "--data", "data.npz", "--target", TARGET, "-o", str(output), "--quiet"]
    return [*words, "--formats", "int8,int4", "--epochs", "1", *(w for s in settings for w in ("--set", s)), *more]


def digest(output: Path) -> str:
    """SHA-256 of names and contents of all that a run left, but for what holds measured times."""
    found = hashlib.sha256()
    for path in sorted(p for p in output.rglob("*") if p.is_file() and p.name not in (*TIMED, *LEFT)):
        name = path.relative_to(output)
        if name.parts[0] in LEFT or path.suffix == ".part":
            continue
        found.update(f"{name}\0{path.stat().st_size}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def litter(*folders: Path) -> list[str]:
    """Names that no finished run leaves behind: parts, locks, journals, scratch."""
    return [
        str(p.relative_to(folder))
        for folder in folders
        for p in folder.rglob("*")
        if p.name in LEFT
        or p.suffix in (".part", ".old")
        or p.name.startswith((".load-", ".tmp", "xdeploy-", ".replaced"))
    ]
