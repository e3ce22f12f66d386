"""Run folders in and out of packed files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xdeploy.coding.file import Unpacked, load, save
from xdeploy.compress.model import CompressedModel
from xdeploy.errors import UsageError
from xdeploy.files import read_json, replacing


def pack_folder(folder: Path, output: Path) -> dict[str, Any]:
    """Pack the compressed model of a run folder.

    Args:
        folder: holds compressed.json and what belongs to it (any run that came as far as `compress`).
        output: the file to write.

    Returns:
        `coded_bytes` of it, with `file`, `packed_bytes` (codes bit by bit, codebooks, multipliers and biases, as on
        the device) and `float_bytes` of the pruned network's parameters.

    Raises:
        UsageError: the folder holds no compressed model, or the file cannot be written.
    """
    if not (folder / "compressed.json").is_file():
        kept = (folder / "graph.npz").is_file()
        hint = "a quantised file that was kept as it is has none" if kept else "run `xdeploy compress` on it first"
        raise UsageError(f"{folder} holds no compressed model", hint=hint)
    model, name = CompressedModel.load(folder), model_name(folder)
    try:
        parts = save(model, output, name)
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror or error}") from None
    packed = sum(w.packed_bytes for w in model.weights.values())
    floats = 4 * sum(w.codes.size + len(w.bias) for w in model.weights.values())
    return {"file": str(output), **parts, "packed_bytes": packed, "float_bytes": floats}


def unpack_folder(file: Path, folder: Path) -> Unpacked:
    """Write a packed file's compressed model into a folder, and the ONNX file that is exported from it.

    The folder then holds compressed.safetensors, compressed.json, plan.json and model.onnx; `xdeploy compile
    FOLDER/model.onnx` goes on from there, with the integers that the run had from which the file was packed.

    Raises:
        UsageError: a damaged file, or the folder cannot be written.
    """
    from xdeploy.export import to_onnx

    found = load(file)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        onnx = to_onnx(found.model, None, found.name)
        found.model.save(folder)
        with replacing(folder / "model.onnx") as part:
            part.write_bytes(onnx.SerializeToString(deterministic=True))
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror or error}") from None
    return found


def model_name(folder: Path) -> str:
    """Name of a run folder's model, as its source says."""
    if not (folder / "source.json").is_file():
        return "model"
    return str(read_json(folder / "source.json", "xdeploy.source/1")["model"]["name"])
