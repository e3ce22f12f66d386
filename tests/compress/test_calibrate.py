"""Streaming ranges equal one-shot ranges; shared parameters; fixed cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.compress.toynets import Builder, plain, residual, task
from xdeploy.compress.calibrate import Range, calibrate, quantised_tensors, shared_groups, watching
from xdeploy.errors import ModelError, UnsupportedError, UsageError
from xdeploy.formats import QParams
from xdeploy.model.torchmodule import NetworkModule


def test_range_does_not_depend_on_batches_or_order():
    g = torch.Generator().manual_seed(0)
    values = torch.cat([torch.zeros(10), torch.randn(5000, generator=g) * 0.01, torch.randn(5000, generator=g) * 30])
    whole = Range()
    whole.add(values)
    for order in (values, values.flip(0), values[torch.randperm(len(values), generator=g)]):
        parts = Range()
        for part in order.split(37):
            parts.add(part)
        assert (parts.low, parts.high, parts.exponent) == (whole.low, whole.high, whole.exponent)
        np.testing.assert_array_equal(parts.counts, whole.counts)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_clipped_range_is_the_percentile_up_to_a_bin(percentile):
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(1)) * 3 + 1
    r = Range()
    r.add(values)
    low, high = r.clipped(percentile)
    width = 2.0**r.exponent
    exact = np.percentile(values.numpy(), [100 - percentile, percentile])
    assert abs(low - exact[0]) <= width + 1e-3
    assert abs(high - exact[1]) <= width + 1e-3
    assert r.clipped(100.0) == (float(values.min()), float(values.max()))


def test_calibration_streaming_equals_one_shot():
    network = residual()
    x, _ = task(100)
    assert calibrate(network, x.split(7), 99.9) == calibrate(network, [x], 99.9)


def test_ranges_come_from_the_right_tensors():
    network = plain(softmax=True)
    x, _ = task(64)
    q = calibrate(network, [x], 100.0)
    assert set(q) == set(quantised_tensors(network))
    assert not {"stem", "dw", "mid"} & set(q)  # their activation is fused
    assert q["input"] == QParams.from_range(float(x.min()), float(x.max()))
    assert q["stem_relu"].zero_point == -128
    assert q["max"] == q["stem_relu"]
    assert q["flatten"] == q["pool"]
    assert q["soft"] == QParams(1 / 256, -128)
    assert q["dw_clip"].scale * 255 <= 6.0 + 1e-5


def test_concat_binds_its_inputs_and_a_relu_alone_keeps_codes():
    groups = shared_groups(residual())
    assert groups["left"] == groups["right"] == groups["cat"] == groups["cat_relu"]
    assert groups["stem_relu"] == groups["cut"] == groups["grow"]
    assert groups["sum_relu"] == "sum_relu"
    assert groups["pool"] == groups["flatten"] != groups["cat"]


def test_softmax_must_not_be_concatenated():
    b = Builder((4,))
    b.linear("a", 3)
    soft = b.add("soft", "softmax")
    b.add("cat", "concat", ("a", soft))
    with pytest.raises(UnsupportedError, match="soft"):
        calibrate(b.network(), [torch.randn(5, 4)], 100.0)


def test_no_data_and_infinite_data_are_refused():
    with pytest.raises(UsageError, match="at least one"):
        calibrate(plain(), [], 100.0)
    with pytest.raises(ModelError, match="finite"):
        calibrate(plain(), [torch.full((1, 2, 8, 8), float("inf"))], 100.0)


def test_hooks_are_removed_even_when_the_model_throws():
    module = NetworkModule(plain())
    with pytest.raises(RuntimeError), watching(module, ["stem", "fc"], lambda n, y: None):
        module(torch.zeros(1, 3, 8, 8))
    assert not any(m._forward_hooks for m in module.modules())
