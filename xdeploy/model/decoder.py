"""Decoding images of one size; as a program, for another process of this package.

`python -m xdeploy.model.decoder PID` takes pickled pieces from its standard input until that ends, and answers each
with pickled rows or an error. What travels is made by this package on both sides.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xdeploy.errors import UsageError
from xdeploy.process.child import end_with

MAX_PIXELS = 64 * 2**20  # of one image

UInt8 = NDArray[np.uint8]


class Piece(NamedTuple):
    """Some images that follow each other in their data set."""

    first: int  # number of the first one
    files: Sequence[tuple[str, bytes]]  # what to call the image in an error, and the content of its file
    shape: tuple[int, int, int]  # height, width and channels that are expected


class Rows(NamedTuple):
    """What a piece holds."""

    images: UInt8  # (N, height, width, channels)
    grey: NDArray[np.bool_]  # (N,) whether the file is


def decode_piece(piece: Piece) -> Rows:
    """Decode all images of a piece.

    Raises:
        UsageError: a broken image, or one of another size; named.
    """
    height, width, depth = piece.shape
    images, grey = np.empty((len(piece.files), *piece.shape), np.uint8), np.empty(len(piece.files), np.bool_)
    for i, (name, data) in enumerate(piece.files):
        image, grey[i] = decode_one(data, name, depth)
        if image.shape != piece.shape:
            raise UsageError(
                f"{name} is {image.shape[1]}x{image.shape[0]}, the first image {width}x{height} (width x height)",
                hint="scale all images to the model's input size",
            )
        images[i] = image
    return Rows(images, grey)


def decode_one(data: bytes, name: str, channels: int = 3) -> tuple[UInt8, bool]:
    """(H, W, channels) of a file's content, and whether the file is grey.

    Raises:
        UsageError: no image, or one of too many pixels or bits; by `name`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UsageError(f"{name} has {image.width}x{image.height} pixels; the limit is {MAX_PIXELS >> 20} Mi")
            if image.mode == "F" or image.mode.startswith("I"):
                raise UsageError(
                    f"{name} has more than 8 bits per channel (mode {image.mode})", hint="save it as 8 bit"
                )
            grey, wanted = image.mode in ("1", "L", "LA"), "L" if channels == 1 else "RGB"
            array = np.asarray(image if image.mode == wanted else image.convert(wanted))
    except UsageError:
        raise
    except Exception as error:  # Pillow raises many kinds for broken files
        raise UsageError(f"{name} is not a readable image: {error}") from None
    return array.reshape(*array.shape[:2], channels), grey


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer the pieces of `source` until it ends."""
    while True:
        try:
            piece = Piece(*pickle.load(source))
        except EOFError:
            return
        answer: tuple[UInt8, NDArray[np.bool_]] | UsageError
        try:
            rows = decode_piece(piece)
            answer = (rows.images, rows.grey)
        except UsageError as error:
            answer = error
        try:
            pickle.dump(answer, sink, pickle.HIGHEST_PROTOCOL)
            sink.flush()
        except BrokenPipeError:  # nobody waits for it any more
            return


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    serve(sys.stdin.buffer, answers)
