"""Several processes at one run (`torchrun --nproc-per-node N -m xdeploy ...`): who is which, shares of work, and sums.

Sums are taken in one order, that of the ranks: 0 + 1 + 2 and so on, of what each has summed over its share. So all
ranks have the same bits, and differ from one process only by that order. Outside of `joined` there is one rank, which
does everything as if this module were not there. Processes talk by gloo, on this machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from xdeploy.errors import XdeployError

PATIENCE = timedelta(hours=6)  # a rank may wait while another one is slow, not for ever
T = TypeVar("T")


@dataclass(slots=True)
class _State:
    """joined: ranks work together now. parted: this rank has only its part of the batch now."""

    joined: bool = False
    parted: bool = False


_STATE = _State()


def count() -> int:
    """How many ranks work together now."""
    return dist.get_world_size() if _STATE.joined else 1


def rank() -> int:
    """This one's number, from 0."""
    return dist.get_rank() if _STATE.joined else 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Work together with the other processes that torchrun has started."""
    own = not dist.is_initialized()
    if own:
        if sys.platform.startswith("linux"):  # gloo listens where the host's name points to, if it is not told
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", timeout=PATIENCE)
    _STATE.joined = True
    try:
        yield
    finally:
        _STATE.joined = False
        if own:
            dist.destroy_process_group()


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    """What gloo says when it cannot go on, which is when another rank has ended, as an error of ours."""
    try:
        yield
    except RuntimeError as error:
        raise XdeployError(
            f"another of the run's {count()} processes has ended: {str(error).splitlines()[0]}",
            hint="its own message says why; the same command goes on with what is done",
        ) from None


def wait() -> None:
    """Until all ranks are here.

    Raises:
        XdeployError: another one has ended.
    """
    if count() > 1:
        with _talking():
            dist.barrier()


def share(items: Iterable[T]) -> Iterator[T]:
    """This rank's items: every `count`-th, from its number on."""
    return islice(items, rank(), None, count())


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor, on every rank, by its sum over the ranks, in the order of the ranks and in float64.

    Raises:
        XdeployError: another rank has ended.
    """
    if count() == 1 or not tensors:
        return
    with torch.no_grad():
        flat = torch.cat([t.detach().reshape(-1).double() for t in tensors])
        parts = [torch.empty_like(flat) for _ in range(count())]
        with _talking():
            dist.all_gather(parts, flat)
        total = parts[0]
        for part in parts[1:]:
            total += part
        for t, found in zip(tensors, torch.split(total, [t.numel() for t in tensors]), strict=True):
            t.copy_(found.view_as(t))


def insist_same(what: str, tensors: Sequence[Tensor]) -> None:
    """Raise the XdeployError of ranks that do not have the same bits, or of one that has ended."""
    if count() == 1:
        return
    digest = hashlib.sha256()
    for t in tensors:
        digest.update(t.detach().contiguous().numpy().tobytes())
    found: list[Any] = [None] * count()
    with _talking():
        dist.all_gather_object(found, digest.hexdigest())
    if len(set(found)) > 1:
        raise XdeployError(
            f"{what} differ between the processes",
            hint="they must run on CPUs of one kind, with equally many threads each; or run it in one process",
        )


# --------------------------------------------------------------------------------------------- a batch in parts
@contextlib.contextmanager
def parted(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor, float]]:
    """This rank's part of a batch, meanwhile: inputs, classes, and its share of the batch's samples.

    The whole of a batch with fewer samples than there are ranks; then each rank does the same.
    """
    ranks = count()
    if ranks == 1 or len(x) < ranks:
        yield x, y, 1.0
        return
    _STATE.parted = True
    try:
        part = x.tensor_split(ranks)[rank()], y.tensor_split(ranks)[rank()]
        yield *part, len(part[0]) / len(x)
    finally:
        _STATE.parted = False


def is_parted() -> bool:
    """Whether the ranks have different parts of one batch now."""
    return _STATE.parted


def add_up_gradients(parameters: Iterable[Tensor]) -> None:
    """Make gradients of the parts' shares of the loss those of the whole batch; inside `parted`."""
    if is_parted():
        add_up([p.grad for p in parameters if p.grad is not None])


class _Total(torch.autograd.Function):
    """Sum over the ranks, whose gradient is the sum of all ranks' gradients of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        add_up([total])
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        add_up([total])
        return total


def whole_moments(z: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and variance (O,) of the channels (axis 1) over all parts of the batch, and values per channel; in float64.

    Gradients pass through them to every rank's part.
    """
    axes, n = [0, *range(2, z.dim())], torch.tensor([z.numel() // z.shape[1]], dtype=torch.float64)
    add_up([n])
    z = z.double()
    mean = _total(z.sum(axes)) / n
    var = _total((z - mean.reshape(1, -1, *[1] * (z.dim() - 2))).square().sum(axes)) / n
    return mean, var, int(n)


def _total(x: Tensor) -> Tensor:
    found: Tensor = _Total.apply(x)  # type: ignore[no-untyped-call]
    return found
