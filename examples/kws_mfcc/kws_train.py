"""Train a small keyword network on spoken digits: MFCC features, then a depthwise separable network of the zoo.

    python examples/kws_mfcc/kws_train.py ../shared/data/fsdd.zip features/ --copies 4 --epochs 12

leaves train.npz, test.npz, norm.npz and kws.safetensors in the folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from xdeploy.model.zoo import DsCnn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from mfcc_tables import Norm, Spoken, read_recordings

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from spoken_digits import COEFFICIENTS, FRAMES, features, mel_filters, one_second, varied

WIDTH = 32
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Words(DsCnn):
    """DS-CNN with 32 channels for 49 frames of 15 coefficients and ten words."""

    xdeploy_input: dict[str, Any] = {"shape": (1, FRAMES, COEFFICIENTS)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(classes=10, width=WIDTH)


def network() -> nn.Module:
    """The network, untrained."""
    return Words()


def coefficients(recordings: list[Spoken], copies: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Features (N, FRAMES, COEFFICIENTS) and digits (N,); all but the first copy of each moved, louder, noisier."""
    rng, filters = np.random.default_rng(seed), mel_filters()
    waves = [(one_second(s.samples), s.digit) for s in recordings]
    rows = [(varied(w, rng) if copy else w, d) for w, d in waves for copy in range(copies)]
    return np.stack([features(w, filters) for w, _ in rows]), np.array([d for _, d in rows])


def prepare(archive: Path, folder: Path, copies: int, limit: int | None = None, seed: int = 0) -> Norm:
    """Write train.npz, test.npz (x as the network takes it, y, and which samples are of one recording) and norm.npz."""
    folder.mkdir(parents=True, exist_ok=True)
    norm = None
    for name, held in (("train", False), ("test", True)):
        every = list(read_recordings(archive, held))
        every = every[:: max(1, len(every) // limit)] if limit else every
        number = 1 if held else copies
        x, y = coefficients(every, number, seed)
        norm = norm or Norm(x.mean((0, 1)), x.std((0, 1)))
        scaled = ((x - norm.mean) / norm.deviation).astype(np.float32)[:, None]
        np.savez(folder / f"{name}.npz", x=scaled, y=y, groups=np.arange(len(y)) // number)
    assert norm is not None
    np.savez(folder / "norm.npz", mean=norm.mean, deviation=norm.deviation)
    return norm


def train(folder: Path, epochs: int, seed: int = 0, batch: int = 128) -> float:
    """Write kws.safetensors; the share of test recordings that the float network hears as they were said."""
    torch.manual_seed(seed)
    with np.load(folder / "train.npz") as file:
        x, y = torch.from_numpy(file["x"]), torch.from_numpy(file["y"])
    net = network()
    optimiser = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.02)
    steps = epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(x)).split(batch):
            loss = F.cross_entropy(net(x[chosen]), y[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
        print(f"epoch {epoch + 1} of {epochs}: loss {total / len(x):.3f}", flush=True)
    save_file(net.state_dict(), folder / "kws.safetensors")
    return accuracy(net, folder)


@torch.no_grad()
def accuracy(net: nn.Module, folder: Path) -> float:
    """Share of test.npz that is right."""
    with np.load(folder / "test.npz") as file:
        x, y = torch.from_numpy(file["x"]), torch.from_numpy(file["y"])
    return float((net.eval()(x).argmax(1) == y).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="recordings as DIGIT_SPEAKER_INDEX.wav in a zip")
    parser.add_argument("output", type=Path, help="folder for features and weights")
    parser.add_argument("--copies", type=int, default=4, help="of each training recording, all but one varied")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--limit", type=int, help="recordings of training and of test; all by default")
    args = parser.parse_args()
    prepare(args.archive, args.output, args.copies, args.limit)
    share = train(args.output, args.epochs)
    print(f"{100 * share:.2f} % of the test recordings are heard as they were said (float)")


if __name__ == "__main__":
    main()
