"""ResNet-20 on real images, by the user's own path: the accuracy of the deployed code and the bytes it needs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from xdeploy.pipeline import run
from xdeploy.recipe import Recipe
from xdeploy.request import Request


def subset(source: Path, to: Path, per_class: int) -> Path:
    """The first images of each class, as a zip of the same shape."""
    seen: dict[str, int] = {}
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(to, "w") as out:
        for name in sorted(archive.namelist()):
            folder = name.rpartition("/")[0]
            if name.endswith(".jpg") and seen.setdefault(folder, 0) < per_class:
                seen[folder] += 1
                out.writestr(name, archive.read(name))
    return to


@pytest.mark.shared
def test_resnet20_keeps_its_accuracy(shared: Path, tmp_path: Path) -> None:
    """Few of the images: within 2 points of the float network on the same 500, at 0.30 of the bytes."""
    recipe = Recipe().with_options({"relevance.samples": 64, "plan.flash": 180_000})
    request = Request(
        "xdeploy.model.zoo:resnet20",
        shared / "models" / "resnet20-cifar10-jpeg.safetensors",
        subset(shared / "data" / "cifar10-jpeg-train.zip", tmp_path / "train.zip", 40),
        subset(shared / "data" / "cifar10-jpeg-test.zip", tmp_path / "test.zip", 50),
        recipe,
        ("x86-64", "cortex-m4"),
        tmp_path / "out",
    )
    report = run(request).report
    assert report is not None
    accuracy = report["accuracy"]
    assert accuracy["float"]["value"] - accuracy["deployed"]["value"] <= 2.0
    assert report["weights"]["ratio_to_float"]["value"] <= 0.30
    assert all(t["verdict"] == "bit-exact" for t in report["targets"].values())
    assert report["onnx"]["node_max_difference"] <= 1
    # deterministic: CMSIS-NN needs 2.39 instructions per MAC on this kind of network
    assert report["targets"]["cortex-m4"]["instructions"]["value"] <= 1.2 * report["model"]["macs"]
