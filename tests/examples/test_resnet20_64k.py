"""The example that fits ResNet-20 into 64 KiB: its search on a small network and a smaller board, its summary."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.readme import standin
from tests.threads import one_thread as one_thread
from xdeploy.errors import GateError
from xdeploy.model import zoo
from xdeploy.recipe import Recipe
from xdeploy.request import Request
from xdeploy.target import load_target

QUICK = {"threads": 1, "data.calibration": 32, "relevance.samples": 16, "bench.repeats": 2, "recover.batch": 32}


@pytest.fixture(scope="module")
def example() -> Any:
    import resnet20_64k

    return resnet20_64k


def test_the_board_is_the_one_that_is_promised(example: Any) -> None:
    memory = load_target(str(example.TARGET)).memory
    assert (memory["flash"], memory["ram"]) == (65536, 40960)
    assert list(example.SHARES) == sorted(example.SHARES, reverse=True)
    assert example.recipe_for(0.2, 0, {}).recover.epochs == 0
    trained = example.recipe_for(0.2, 3, {"seed": 7})
    assert (trained.recover.epochs, trained.ecq.method, trained.plan.density, trained.seed) == (3, "ecq", 0.2, 7)


class Wide(standin.Small):
    """Enough weights for their share to decide what fits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(8, 96, 3, padding=1), torch.nn.Conv2d(96, 8, 3, padding=1))


@pytest.fixture
def request_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: Any) -> Callable[[int], Request]:
    """A request for a board like the example's with so many bytes of flash."""
    standin.make(tmp_path)
    torch.manual_seed(0)
    net = Wide()
    from safetensors.torch import save_file

    save_file(net.state_dict(), tmp_path / "wide.safetensors")
    monkeypatch.setattr(zoo, "resnet20", Wide)

    def make(flash: int) -> Request:
        board = tmp_path / "stm32l412.toml"
        board.write_text(example.TARGET.read_text().replace("flash = 65536", f"flash = {flash}"))
        return Request(example.MODEL, tmp_path / "wide.safetensors", tmp_path / "train.zip", tmp_path / "test.zip",
                       Recipe(), (str(board),), tmp_path / f"out{flash}")  # fmt: skip

    return make


@pytest.mark.slow
def test_the_largest_share_that_fits(request_for: Callable[[int], Request], example: Any) -> None:
    sizes = {}
    for share in (0.5, 0.05):
        found, report = example.fitted(request_for(65536), 0, [share], QUICK)
        assert found == share
        sizes[share] = report["targets"]["stm32l412"]["flash"]["value"]
    assert sizes[0.05] < sizes[0.5] - 500
    between = (sizes[0.5] + sizes[0.05]) // 2
    share, report = example.fitted(request_for(between), 1, [0.5, 0.05], QUICK)
    assert share == 0.05
    assert report["targets"]["stm32l412"]["flash"]["value"] <= between
    text = example.summary(share, 1, report)
    assert "1 epochs of fine-tuning" in text
    assert f"{report['accuracy']['deployed']['value']:.2f} % by the deployed integer code" in text
    with pytest.raises(GateError, match=r"no share of 0\.5, 0\.05 fits"):
        example.fitted(request_for(4096), 0, [0.5, 0.05], QUICK)


@pytest.mark.slow
@pytest.mark.shared
def test_resnet20_itself_fits(shared: Path, tmp_path: Path, example: Any) -> None:
    """The real network on a few hundred real images: it fits, and a board's outputs are the reference's."""
    for name, count in (("train", 40), ("test", 10)):
        with zipfile.ZipFile(shared / f"data/cifar10-jpeg-{name}.zip") as source:
            names = sorted(n for n in source.namelist() if not n.endswith("/"))
            labels = np.array([n.split("/")[-2] for n in names])
            with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as small:
                for label in np.unique(labels):
                    for at in np.flatnonzero(labels == label)[:count]:
                        small.writestr(names[at], source.read(names[at]))
    weights = shared / "models/resnet20-cifar10-jpeg.safetensors"
    data = (tmp_path / "train.zip", tmp_path / "test.zip")
    wanted = Request(example.MODEL, weights, *data, Recipe(), (str(example.TARGET),), tmp_path / "out")
    share, report = example.fitted(wanted, 0, example.SHARES, {"threads": 1, "relevance.samples": 64})
    row = report["targets"]["stm32l412"]
    assert share in example.SHARES
    assert row["verdict"] == "bit-exact"
    assert row["flash"]["value"] <= 65536
    assert row["ram"]["value"] + row["stack"]["value"] <= 40960
    assert report["accuracy"]["deployed"]["n"] == 100
