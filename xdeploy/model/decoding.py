"""All images of a data set decoded into one array that lies in a mapped file, on as many cores as help.

Of a large image most of the work is Pillow's, which lets other threads run meanwhile. Of a small one it is Python's,
which does not: where there are many, other processes take part (plain ones and not multiprocessing's, because those
would run a user's script a second time; when this process dies, so do they).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from xdeploy.errors import UsageError
from xdeploy.model.bars import Progress, stepping
from xdeploy.model.decoder import Piece, Rows, UInt8, decode_one, decode_piece
from xdeploy.model.images import MAX_TOTAL, ImageFiles
from xdeploy.model.spool import Spool, stored

BAR_FROM = 2000  # images from which decoding is worth a progress bar
PROCESSES_FROM = 8000  # small images from which a process, a quarter of a second, is worth its start
_PIECE = 2**18  # pixels that are decoded at a time: handing over one small image costs more than the image
_SMALL = 64 * 64  # pixels of an image up to which most of the work is Python's
_MOST = 4  # processes: this one reads the files of all


def decode(files: ImageFiles, where: str, channels: int | None, progress: Progress | None) -> UInt8:
    """Decode all images into (N, H, W, C); C is `channels`, or 1 if all images are grey and 3 otherwise.

    Raises:
        UsageError: a broken image, or one whose size differs from the first one's; the first of them, named.
    """
    first, _ = decode_one(files.read(files.names[0]), f"{where}: {files.names[0]}")
    if len(files.names) * first.size > MAX_TOTAL:
        raise UsageError(f"{where}: {len(files.names)} images of {first.shape[1]}x{first.shape[0]} exceed "
                         f"{MAX_TOTAL >> 30} GiB", hint="scale the images to the model's input size")  # fmt: skip
    depth = channels if channels in (1, 3) else 3
    grey = np.zeros(len(files.names), bool)
    with Spool((len(files.names), *first.shape[:2], depth), np.uint8) as spool:
        for begin, rows in _decoded(files, where, (*first.shape[:2], depth), progress):
            spool.write(begin, rows.images)
            grey[begin : begin + len(rows.grey)] = rows.grey
        out = spool.array()
    return stored(out[..., :1], np.uint8) if channels is None and grey.all() else out


def _decoded(
    files: ImageFiles, where: str, shape: tuple[int, int, int], progress: Progress | None
) -> Iterator[tuple[int, Rows]]:
    """(number of the first image, images) of all pieces, as they are ready."""
    count, pixels = len(files.names), shape[0] * shape[1]
    several = max(1, _PIECE // pixels)
    starts = range(0, count, several)

    def read(start: int) -> Piece:
        names = files.names[start : start + several]
        return Piece(start, [(f"{where}: {name}", files.read(name)) for name in names], shape)

    shown = progress if count > BAR_FROM else (lambda what, done, total: None)
    with stepping("reading images", count, shown) as step:
        step(0)
        done = 0
        for start, rows in _Team(read, starts, _hands(count, pixels)):
            yield start, rows
            done += len(rows.images)
            step(done)


class _Hand(Protocol):
    """Something that decodes one piece at a time."""

    def __call__(self, piece: Piece) -> Rows: ...

    def close(self) -> None: ...


def _hands(count: int, pixels: int) -> list[_Hand]:
    """What decodes `count` images of so many pixels."""
    cores = os.cpu_count() or 1
    if pixels > _SMALL:
        return [_Here() for _ in range(cores)]
    hands: list[_Hand] = [_Here()]
    with contextlib.suppress(OSError):  # no room for another process: then without
        while count >= PROCESSES_FROM and len(hands) < min(cores, _MOST):
            hands.append(_There())
    return hands


class _Here:
    """Decodes in this process."""

    def __call__(self, piece: Piece) -> Rows:
        return decode_piece(piece)

    def close(self) -> None:
        pass


class _There:
    """Decodes in a process of its own, and in this one should that die."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "xdeploy.model.decoder", str(os.getpid())]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, piece: Piece) -> Rows:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            pickle.dump(tuple(piece), self._child.stdin, pickle.HIGHEST_PROTOCOL)
            self._child.stdin.flush()
            answer = pickle.load(self._child.stdout)
        except (OSError, EOFError, pickle.UnpicklingError, ValueError):
            return decode_piece(piece)
        if isinstance(answer, UsageError):
            raise answer
        return Rows(*answer)

    def close(self) -> None:
        self._child.kill()
        self._child.communicate()


class _Team:
    """Several hands that take pieces in order; iterated, it gives their rows as they are ready.

    Of errors the first piece's is raised: every piece before it was taken before it.
    """

    def __init__(self, read: Callable[[int], Piece], starts: range, hands: list[_Hand]) -> None:
        self._read, self._hands, self._count = read, hands, len(starts)
        self._waiting, self._lock = iter(starts), threading.Lock()
        self._ready: queue.Queue[tuple[int, Rows | BaseException]] = queue.Queue(2 * len(hands))
        self._over = threading.Event()

    def __iter__(self) -> Iterator[tuple[int, Rows]]:
        threads = [threading.Thread(target=self._work, args=(hand,), daemon=True) for hand in self._hands]
        try:
            for thread in threads:
                thread.start()
            for _ in range(self._count):
                start, rows = self._ready.get()
                if isinstance(rows, BaseException):
                    self._over.set()
                    raise min([(start, rows), *self._failures(threads)], key=lambda f: f[0])[1]
                yield start, rows
        finally:
            self._over.set()
            list(self._failures(threads))  # nobody waits at a full queue

    def _work(self, hand: _Hand) -> None:
        found: Rows | BaseException | None = None
        while not self._over.is_set() and not isinstance(found, BaseException):
            with self._lock:
                start = next(self._waiting, None)
            if start is None:
                break
            try:
                found = hand(self._read(start))
            except BaseException as error:
                found = error
            self._ready.put((start, found))
        hand.close()

    def _failures(self, threads: list[threading.Thread]) -> Iterator[tuple[int, BaseException]]:
        """What the threads still bring until they end."""
        while any(t.is_alive() for t in threads) or not self._ready.empty():
            try:
                start, rows = self._ready.get(timeout=0.05)
            except queue.Empty:
                continue
            if isinstance(rows, BaseException):
                yield start, rows
