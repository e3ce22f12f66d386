"""Reading and decoding images of one size; as a program, for another process of this package.

`python -m xdeploy.model.decoder PID` takes one line of JSON from its standard input, [path of the folder or zip,
shape of an image, descriptor of the open file that takes the rows], and then a line per piece until that ends; it
decodes each piece into the file and answers with the greys, or with null for an error that whoever asked
finds by decoding it again.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xdeploy.errors import UsageError
from xdeploy.model.spool import write_at
from xdeploy.process.child import work_for

MAX_PIXELS = 64 * 2**20  # of one image

UInt8 = NDArray[np.uint8]
Grey = NDArray[np.bool_]


class Piece(NamedTuple):
    """Some images that follow each other in their data set."""

    first: int  # number of the first one
    names: tuple[str, ...]  # in the folder or zip


Read = Callable[[str], bytes]


def reader(path: Path, archive: zipfile.ZipFile | None = None) -> Read:
    """What gives the content of a file of a folder, or of an open zip, by its name."""
    if archive is None:
        return lambda name: (path / name).read_bytes()
    members = archive

    def read(name: str) -> bytes:
        with members.open(name) as file:  # never more than declared, whatever the stream would give
            return file.read(members.getinfo(name).file_size + 1)

    return read


def decode_piece(piece: Piece, path: str, shape: tuple[int, int, int], read: Read) -> tuple[UInt8, Grey]:
    """The piece's images (N, *shape), and which files (N,) are grey.

    Raises:
        UsageError: a broken image, or one of another size; named.
    """
    height, width, depth = shape
    images, grey = np.empty((len(piece.names), *shape), np.uint8), np.empty(len(piece.names), np.bool_)
    for i, name in enumerate(piece.names):
        image, grey[i] = decode_one(read(name), f"{path}: {name}", depth)
        if image.shape != shape:
            raise UsageError(
                f"{path}: {name} is {image.shape[1]}x{image.shape[0]}, the first image {width}x{height} "
                "(width x height)",
                hint="scale all images to the model's input size",
            )
        images[i] = image
    return images, grey


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


def serve(source: TextIO, sink: TextIO) -> None:
    """Answer the pieces of `source` until it ends, or nobody waits for answers any more."""
    path, shape, descriptor = json.loads(source.readline() or "[null, null, null]")
    if path is None:
        return
    with contextlib.suppress(BrokenPipeError), contextlib.ExitStack() as stack:
        folder = Path(path).is_dir()
        read = reader(Path(path), None if folder else stack.enter_context(zipfile.ZipFile(path)))
        for line in source:
            first, names = json.loads(line)
            piece = Piece(first, tuple(names))
            try:
                images, grey = decode_piece(piece, path, tuple(shape), read)
                write_at(descriptor, piece.first * images[0].nbytes, images.data.cast("B"))
                answer: list[bool] | None = grey.tolist()
            except Exception:  # of the image, the zip or the disk
                answer = None
            print(json.dumps(answer), file=sink, flush=True)


if __name__ == "__main__":
    work_for(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    serve(sys.stdin, answers)
