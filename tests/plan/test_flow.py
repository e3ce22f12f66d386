"""Channels and densities through the command line, down to the integers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.e2e.files import blobs, float_onnx
from xdeploy.cli import main
from xdeploy.compress.model import CompressedModel
from xdeploy.handover import CompressionPlan


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow")
    float_onnx(folder / "net.onnx", 0)
    blobs(folder / "data.npz", 0)
    return folder


def call(files, verb: str, out: str, *settings: str) -> int:
    given = ("relevance.samples=32", "plan.max_drop=100", "plan.formats=['int8', 'c4s8']", *settings)
    options = [x for s in given for x in ("--set", s)]
    arguments = [verb, str(files / "net.onnx"), "--data", str(files / "data.npz"), "-o", str(files / out), "--quiet"]
    return main([*arguments, *options])


def test_channels_and_density_come_out_as_integers(files):
    settings = ("plan.channels=0.5", "plan.rounds=2", "plan.density=0.3", "plan.least_channels=0.3")
    assert call(files, "compress", "small", *settings) == 0
    plan, model = CompressionPlan.load(files / "small" / "plan.json"), CompressedModel.load(files / "small")
    before = json.loads((files / "small" / "source.json").read_text())
    assert any(x.keep is not None for x in plan.layers)
    assert plan.predicted["macs"]["value"] < plan.predicted["macs_before"]["value"]
    total = zeros = 0
    for line in plan.layers:
        w = model.weights[line.origin]
        if line.keep is not None:
            assert len(w.codes) == len(line.keep)
        kept = int(np.floor(line.density * w.codes.size + 0.5))
        assert (w.values == 0).sum() >= w.codes.size - kept
        total, zeros = total + w.codes.size, zeros + w.codes.size - kept
    assert zeros / total == pytest.approx(0.7, abs=0.02)
    assert before
    assert [s["step"] for s in model.steps][:2] == ["prune", "quantise"]


@pytest.mark.parametrize(
    ("setting", "code", "words"),
    [
        ("plan.channels=0.01", 4, "plan.least_channels"),
        ("plan.channels='half'", 2, "plan.channels"),
        ("plan.channels=2", 2, "above 0 and at most 1"),
        ("plan.density=0.001", 4, "plan.least_density"),
        ("plan.density=[]", 2, "empty list"),
        ("plan.density=-1", 2, "plan.density"),
        ("plan.rule='milp'", 2, "plan.rule"),
        ("plan.zeros='wanda'", 2, "plan.zeros"),
        ("plan.rounds=0", 2, "plan.rounds"),
        ("plan.instructions=-1", 2, "plan.instructions"),
        ("plan.coded=10", 4, "plan.coded"),
        ("plan.whole=['nosuch']", 0, ""),  # without plan.channels it has no say
    ],
)
def test_bad_settings_are_told(files, capsys, setting, code, words):
    assert call(files, "plan", "bad", setting) == code
    assert words in capsys.readouterr().err
