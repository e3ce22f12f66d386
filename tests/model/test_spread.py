"""Batches through torch on several cores: order, errors, and the same bytes for every number of threads."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch

from xdeploy.model.spread import spread
from xdeploy.model.top1 import accuracy, right
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.model.trace import trace
from xdeploy.model.zoo import resnet20


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param, "what was set is set again"
    torch.set_num_threads(before)


def test_results_come_in_order_whichever_is_ready_first(threads):
    def work(k: int) -> int:
        time.sleep(0.002 * (k % 3))
        assert torch.get_num_threads() == 1
        return k * k

    assert list(spread(work, range(20))) == [k * k for k in range(20)]


def test_few_items_are_taken_ahead(threads):
    taken = itertools.count()
    results = spread(lambda k: k, (next(taken) for _ in range(1000)))
    assert next(results) == 0
    assert next(taken) <= threads + 1
    results.close()


def test_an_error_ends_it(threads):
    def work(k: int) -> int:
        if k == 3:
            raise ZeroDivisionError("third")
        return k

    results, seen = spread(work, range(100)), []
    with pytest.raises(ZeroDivisionError, match="third"):
        seen.extend(results)
    assert seen == [0, 1, 2]


def test_accuracy_is_that_of_a_loop_for_every_number_of_threads():
    torch.manual_seed(3)
    network = trace(resnet20().eval(), (3, 32, 32))
    x, y = torch.randn(70, 3, 32, 32), torch.randint(0, 10, (70,))
    batches = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 70, 16)]
    with torch.inference_mode():
        expected = np.concatenate([(NetworkModule(network).eval()(a).argmax(1) == b).numpy() for a, b in batches])
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert (right(NetworkModule(network), batches) == expected).all()
    finally:
        torch.set_num_threads(before)
    assert accuracy(NetworkModule(network), batches) == (100.0 * expected.sum() / 70, 70)
    assert accuracy(NetworkModule(network), []) == (0.0, 0)
