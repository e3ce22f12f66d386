"""One of the processes of test_ranks: KIND OUTPUT ARGUMENTS; writes what it has in the end as npz."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.compress.test_compress import plan_of
from tests.compress.toynets import Builder, batches, io_of
from xdeploy import ranks
from xdeploy.compress.apply import compress
from xdeploy.errors import XdeployError
from xdeploy.model.demo import demo_data
from xdeploy.model.network import Network
from xdeploy.recipe import CompressOptions, RecoverOptions, RelevanceOptions
from xdeploy.relevance import score

Arrays = dict[str, np.ndarray[Any, Any]]


def digits(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = demo_data()
    return next(iter(data.batches(np.arange(count, dtype=np.int64), count)))


def network() -> Network:
    b = Builder(tuple(digits(1)[0].shape[1:]), 0)
    top = b.conv("stem", 8)
    b.add("stem_relu", "relu")
    b.conv("a", 8)
    b.add("a_relu", "relu")
    b.add("sum", "add", (b.last, top))
    b.add("sum_relu", "relu")
    b.conv("down", 12, stride=2)
    b.add("down_relu", "relu")
    b.global_pool()
    b.linear("fc", 10)
    return b.network()


def scores(methods: list[str]) -> Arrays:
    x, y = digits(150)  # 32 + 32 + 32 + 32 + 22: not the same for both
    found: Arrays = {}
    for method in methods:
        options = RelevanceOptions(method=method, samples=150)
        known = score(network(), batches(x, y, 50), options, "digits")
        found[f"{method}/samples"] = np.array(known.samples)
        found[f"{method}/residual"] = np.array(1.0 + known.conservation_residual)
        for kind in ("weight", "channel", "sensitivity"):
            found |= {f"{method}/{kind}/{n}": v for n, v in getattr(known, kind).items()}
    return found


def tuned(batch: int) -> Arrays:
    x, y = digits(3 * batch)
    start = network()
    model = compress(
        start, plan_of(start, "int4"), None, io_of(start), lambda: [x[:64]], lambda epoch: batches(x, y, batch), None,
        CompressOptions(), RecoverOptions(epochs=2, lr=0.02, batch=batch, distill=0.5, precision="float32"), seed=0,
    )  # fmt: skip
    return {**model.network.tensors(), **{f"start/{k}": v for k, v in start.tensors().items()}}


def main(kind: str, output: Path, *arguments: str) -> None:
    torch.set_num_threads(1)
    found: Arrays = {}
    with ranks.joined() if os.environ["WORLD_SIZE"] != "1" else contextlib.nullcontext():
        if kind == "differ":
            try:
                ranks.insist_same("weights", [torch.tensor([float(ranks.rank())])])
            except XdeployError as error:
                found["told"] = np.array(error.message)
        elif kind == "score":
            found = scores(arguments[0].split(","))
        else:
            found = tuned(int(arguments[0]))
    np.savez(output, **found)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
