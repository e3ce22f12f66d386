"""`xdeploy pack` and `xdeploy unpack`: the compressed model as one entropy-coded file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from xdeploy.commands.options import Parser
from xdeploy.commands.output import columns, emit

_PARTS = ("codes", "codebook", "scales", "biases")


def add(commands: Any, common: Parser) -> None:
    """Add the parsers."""
    text = "the compressed model of a run folder as one entropy-coded file"
    pack = commands.add_parser("pack", help=text, description=text, parents=[common])
    pack.set_defaults(run=_pack)
    pack.add_argument("folder", type=Path, metavar="OUT", help="a run folder, compressed")
    pack.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the file, e.g. model.xdc")
    text = "a packed file as a folder with the compressed model and its ONNX file, to be compiled"
    unpack = commands.add_parser("unpack", help=text, description=text, parents=[common])
    unpack.set_defaults(run=_unpack)
    unpack.add_argument("file", type=Path, metavar="FILE", help="what `xdeploy pack` wrote")
    unpack.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write")


def _pack(args: argparse.Namespace) -> int:
    from xdeploy.coding.folder import pack_folder

    document = pack_folder(args.folder, args.output)
    emit(args, {"schema": "xdeploy.pack/1", **document}, _table(document))
    return 0


def _table(d: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [("layer", "format", "weights", "mode", "entropy", *_PARTS)]
    for x in d["layers"]:
        sizes = (f"{x[k]:.0f}" for k in ("entropy", *_PARTS))
        rows.append((x["origin"], x["format"], str(x["weights"]), x["mode"], *sizes))
    rest = f"header {d['header']}, structure {d['structure']}, activations {d['activations']:.0f}"
    total, packed, floats = d["total"], d["packed_bytes"], d["float_bytes"]
    return (
        f"{columns(rows)}\n{rest} bytes\n"
        f"{d['file']}: {total} bytes; 1/{packed / total:.2f} of packed ({packed}), 1/{floats / total:.1f} of float32"
    )


def _unpack(args: argparse.Namespace) -> int:
    from xdeploy.coding.folder import unpack_folder

    found = unpack_folder(args.file, args.output)
    onnx = args.output / "model.onnx"
    document = {"schema": "xdeploy.unpack/1", "folder": str(args.output), "name": found.name, "onnx": str(onnx)}
    emit(args, document, f"{args.output}: go on with `xdeploy compile {onnx} --target NAME -o OUT`")
    return 0
