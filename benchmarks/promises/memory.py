"""Memory of scoring and calibrating on every one of N images, for growing N: it should not grow with them.

    python benchmarks/promises/memory.py                             # 500, 8,000 and 50,000 images as zip and npz
    python benchmarks/promises/memory.py --counts 500,8000 --kinds zip

Each case is a process of its own, which loads the samples, scores the network (LRP) on all training samples, calibrates
on all of them and counts the right answers of all test samples. Told are the most anonymous memory (RssAnon, looked at
every few milliseconds) and the most resident memory altogether (VmHWM, the system's own figure, mapped files included),
in bytes. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIDE, CLASSES = 32, 4  # pixels of an image's edge; colour
KINDS = ("zip", "folder", "npz", "compressed npz", "floats")
_INTERVAL = 0.003  # seconds


def write_images(path: Path, count: int, kind: str) -> Path:
    """Write `count` images that repeat after 100, with labels, below `path`; where they are."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (100, SIDE, SIDE, 3), np.uint8)
    picked = np.arange(count) % 100
    labels = picked % CLASSES
    if kind in ("zip", "folder"):
        return _pictures(path, pixels, picked, kind)
    target = path / "data.npz"
    x = pixels if kind != "floats" else np.moveaxis(pixels, 3, 1).astype(np.float32) / 255
    (np.savez_compressed if kind == "compressed npz" else np.savez)(target, x=x[picked], y=labels)
    return target


def _pictures(path: Path, pixels: Any, picked: Any, kind: str) -> Path:
    from PIL import Image

    encoded = []
    for image in pixels:
        Image.fromarray(image).save(stream := io.BytesIO(), "JPEG", quality=80)
        encoded.append(stream.getvalue())
    names = [f"class{k % CLASSES}/{n:06}.jpg" for n, k in enumerate(picked)]
    if kind == "zip":
        with zipfile.ZipFile(path / "data.zip", "w") as archive:
            for name, k in zip(names, picked, strict=True):
                archive.writestr(name, encoded[k])
        return path / "data.zip"
    for name, k in zip(names, picked, strict=True):
        (path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (path / "data" / name).write_bytes(encoded[k])
    return path / "data"


class Watch:
    """The most anonymous memory of this process inside its `with`, in bytes."""

    def __init__(self) -> None:
        self.most, self._done = 0, threading.Event()

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.most = max(self.most, status("RssAnon"))

    def _look(self) -> None:
        while not self._done.wait(_INTERVAL):
            self.most = max(self.most, status("RssAnon"))


def status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(f"{field}:"))


def network() -> Any:
    """A small classifier of these images."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    ).eval()  # fmt: skip


def work(path: Path) -> dict[str, Any]:
    """Load, score, calibrate and count right answers on all images of `path`, in this process."""
    import torch

    from xdeploy.compress.calibrate import calibrate
    from xdeploy.model.source import load_source
    from xdeploy.model.top1 import AT_ONCE, right
    from xdeploy.model.torchmodule import NetworkModule
    from xdeploy.recipe import Recipe
    from xdeploy.relevance import score

    torch.set_num_threads(1)
    module = network()
    module.xdeploy_input = {"shape": (3, SIDE, SIDE)}
    recipe = Recipe().with_options({"relevance.samples": 10**9})
    with Watch() as watch:
        source = load_source(module, None, path, None, recipe.data, 0)
        loaded = status("VmHWM")
        scores = score(source.network, source.train_batches(32), recipe.relevance, source.fingerprint)
        ranges = calibrate(source.network, (x for x, _ in source.train_batches(64)), 100.0)
        hits = right(NetworkModule(source.network), source.test_batches(AT_ONCE))
    return {
        "scored": scores.samples, "tested": len(hits), "ranges": len(ranges), "anonymous": watch.most,
        "resident": status("VmHWM"), "resident_after_loading": loaded,
    }  # fmt: skip


def measure(count: int, kind: str) -> dict[str, Any]:
    """One case in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="xdeploy-memory-") as folder:
        path = write_images(Path(folder), count, kind)
        env = {**os.environ, "XDEPLOY_CACHE": folder, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--work", str(path)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{count} images as {kind}: exit {done.returncode}\n{done.stderr}")
    row: dict[str, Any] = json.loads(done.stdout)
    return {"images": count, "kind": kind, **row}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default="500,8000,50000")
    parser.add_argument("--kinds", default="zip,npz", help=f"of {', '.join(KINDS)}; with commas between")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.work is not None:
        print(json.dumps(work(options.work)))
        return
    rows = [measure(int(n), kind) for kind in options.kinds.split(",") for n in options.counts.split(",")]
    print(json.dumps({"schema": "xdeploy.memory/1", "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
