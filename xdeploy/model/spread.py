"""Independent batches through torch on as many cores as it has threads, each batch by one thread.

Threads that share every operation meet after each of them: with operations of a millisecond they wait for each other
most of the time, and on a busy machine all the time. Batches that nothing connects need not meet at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def spread(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """The results of `work`, in the order of the items; its own operations are not split further.

    Results do not depend on the number of threads. Items are taken in the calling thread, one more than is at work;
    an error of `work` ends it when its turn comes.

    Args:
        work: called in other threads, each of which has torch's modes (gradients or not) to set for itself.
        items: for example batches of samples.
    """
    count = torch.get_num_threads()
    waiting: deque[Future[R]] = deque()
    torch.set_num_threads(1)  # threads that begin from now on keep to it
    try:
        with ThreadPoolExecutor(count) as pool:
            try:
                for item in items:
                    waiting.append(pool.submit(work, item))
                    if len(waiting) > count:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    finally:
        torch.set_num_threads(count)
