"""All images of a data set decoded into one array that lies in a mapped file, on as many cores as help.

Of a large image most of the work is Pillow's, which lets other threads run meanwhile. Of a small one it is Python's,
which does not: where there are many, other processes take part (plain ones and not multiprocessing's, because those
would run a user's script a second time; when this process dies, so do they).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from subprocess import PIPE
from typing import Any, Protocol

import numpy as np

from xdeploy.errors import UsageError
from xdeploy.model.bars import Progress, stepping
from xdeploy.model.decoder import Grey, Piece, UInt8, decode_one, decode_piece
from xdeploy.model.images import MAX_TOTAL, ImageFiles
from xdeploy.model.spool import Spool, stored

BAR_FROM = 2000  # images from which decoding is worth a progress bar
PROCESSES_FROM = 8000  # small images from which a process, a quarter of a second, is worth its start
_PIECE = 2**18  # pixels that are decoded at a time: handing over one small image costs more than the image
_SMALL = 64 * 64  # pixels of an image up to which most of the work is Python's


def decode(files: ImageFiles, channels: int | None, progress: Progress | None) -> UInt8:
    """Decode all images into (N, H, W, C); C is `channels`, or 1 if all images are grey and 3 otherwise.

    Raises:
        UsageError: a broken image, or one whose size differs from the first one's; the first of them, named.
    """
    first, _ = decode_one(files.read(files.names[0]), f"{files.path}: {files.names[0]}")
    if len(files.names) * first.size > MAX_TOTAL:
        raise UsageError(f"{files.path}: {len(files.names)} images of {first.shape[1]}x{first.shape[0]} exceed "
                         f"{MAX_TOTAL >> 30} GiB", hint="scale the images to the model's input size")  # fmt: skip
    depth = channels if channels in (1, 3) else 3
    grey = np.zeros(len(files.names), bool)
    with Spool((len(files.names), *first.shape[:2], depth), np.uint8) as spool:
        for begin, found in _decoded(files, spool, progress):
            grey[begin : begin + len(found)] = found
        out = spool.array()
    return stored(out[..., :1], np.uint8) if channels is None and grey.all() else out


def _decoded(files: ImageFiles, spool: Spool, progress: Progress | None) -> Iterator[tuple[int, Grey]]:
    """(number of the first image, which are grey) of all pieces, as they are in the spool."""
    count, pixels = len(files.names), spool.shape[1] * spool.shape[2]
    several = max(1, _PIECE // pixels)
    pieces = [Piece(i, files.names[i : i + several]) for i in range(0, count, several)]
    shown = progress if count > BAR_FROM else (lambda what, done, total: None)
    with stepping("reading images", count, shown) as step:
        step(0)
        done = 0
        for begin, grey in _Team(pieces, _hands(files, spool)):
            yield begin, grey
            done += len(grey)
            step(done)


class _Hand(Protocol):
    """Something that puts one piece at a time into the spool and tells which images are grey."""

    def __call__(self, piece: Piece) -> Grey: ...

    def close(self) -> None: ...


def _hands(files: ImageFiles, spool: Spool) -> Sequence[_Hand]:
    """What decodes the files."""
    cores, here = os.cpu_count() or 1, _Here(files, spool)
    if spool.shape[1] * spool.shape[2] > _SMALL:
        return [here] * cores
    hands: list[_Hand] = []
    with contextlib.suppress(OSError):  # no room for another process
        while len(files.names) >= PROCESSES_FROM and cores > 1 and len(hands) < cores:
            hands.append(_There(here))
    return hands or [here]


class _Here:
    """Decodes in this process."""

    def __init__(self, files: ImageFiles, spool: Spool) -> None:
        self.files, self.spool = files, spool
        height, width, depth = spool.shape[1:]
        self.shape = height, width, depth

    def __call__(self, piece: Piece) -> Grey:
        images, grey = decode_piece(piece, str(self.files.path), self.shape, self.files.read)
        self.spool.write(piece.first, images)
        return grey

    def close(self) -> None:
        pass


class _There:
    """Decodes in a process of its own; what fails there is done here, which tells why or does not fail."""

    def __init__(self, here: _Here) -> None:
        descriptor = here.spool.descriptor
        command = [sys.executable, "-m", "xdeploy.model.decoder", str(os.getpid())]
        self._child = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, pass_fds=(descriptor,), text=True)
        self._here = here
        self._say([str(here.files.path.absolute()), here.shape, descriptor])

    def __call__(self, piece: Piece) -> Grey:
        assert self._child.stdout is not None
        answer: list[bool] | None = None
        with contextlib.suppress(OSError, ValueError):
            self._say(piece, flush=True)
            answer = json.loads(self._child.stdout.readline())
        return self._here(piece) if answer is None else np.array(answer, bool)

    def _say(self, line: Any, flush: bool = False) -> None:
        print(json.dumps(line), file=self._child.stdin, flush=flush)

    def close(self) -> None:
        self._child.kill()
        self._child.communicate()


class _Team:
    """Several hands that take pieces in order; iterated, it gives their greys as they are ready.

    Of errors the first piece's is raised: every piece before it was taken before it.
    """

    def __init__(self, pieces: Sequence[Piece], hands: Sequence[_Hand]) -> None:
        self._hands, self._count = hands, len(pieces)
        self._waiting, self._lock = iter(pieces), threading.Lock()
        self._ready: queue.SimpleQueue[tuple[int, Grey | BaseException]] = queue.SimpleQueue()
        self._over = threading.Event()

    def __iter__(self) -> Iterator[tuple[int, Grey]]:
        threads = [threading.Thread(target=self._work, args=(hand,), daemon=True) for hand in self._hands]
        try:
            for thread in threads:
                thread.start()
            for _ in range(self._count):
                begin, found = self._ready.get()
                if isinstance(found, BaseException):
                    self._end(threads)
                    rest = [self._ready.get() for _ in range(self._ready.qsize())]
                    failed = [(k, e) for k, e in [(begin, found), *rest] if isinstance(e, BaseException)]
                    raise min(failed, key=lambda failure: failure[0])[1]
                yield begin, found
        finally:
            self._end(threads)

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        self._over.set()
        for thread in threads:
            thread.join()

    def _work(self, hand: _Hand) -> None:
        found: Grey | BaseException | None = None
        while not self._over.is_set() and not isinstance(found, BaseException):
            with self._lock:
                piece = next(self._waiting, None)
            if piece is None:
                break
            try:
                found = hand(piece)
            except BaseException as error:
                found = error
            self._ready.put((piece.first, found))
        hand.close()
