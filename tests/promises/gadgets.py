"""Hostile files: each function writes one into a folder and gives the command line that reads it.

A file that runs code when it is read creates `canary` in the folder.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

GADGETS: dict[str, Gadget] = {}
PLAN = ["plan", "small_net:make", "--target", "cortex-m4", "-o", "out", "--quiet"]
DATA = ["--data", "data.npz"]


@dataclass(frozen=True)
class Gadget:
    """make: writes the file, gives arguments. codes: the exit codes that are right."""

    make: Callable[[Path], list[str]]
    codes: tuple[int, ...]


def gadget(name: str, *codes: int) -> Callable[[Callable[[Path], list[str]]], Callable[[Path], list[str]]]:
    """Enter into the table."""

    def enter(make: Callable[[Path], list[str]]) -> Callable[[Path], list[str]]:
        GADGETS[name] = Gadget(make, codes or (2,))
        return make

    return enter


class Bomb:
    """Unpickled, it creates the canary."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.system, ("touch canary",)


def weights(path: Path) -> list[str]:
    return [*PLAN, *DATA, "--weights", path.name]


def data(path: Path) -> list[str]:
    return [*PLAN, "--data", path.name]


# ---------------------------------------------------------------------------------------------------------- pickles
def _pickles(name: str) -> None:
    @gadget(f"pickle as {name}")
    def make(folder: Path) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(Bomb()))
        return weights(folder / name)


for _name in ("w.pt", "w.pth", "w.safetensors", "w.bin", "w.pkl", "w.ckpt"):
    _pickles(_name)


@gadget("pickle as .pt2", 2, 3)
def _(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "m.pt2", "w") as archive:
        archive.writestr("archive/data/weights/weight_0", pickle.dumps(Bomb()))
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
        archive.writestr("archive/version", "3")
    return ["plan", "m.pt2", *DATA, "-o", "out", "--quiet"]


@gadget("pickled example inputs in a .pt2", 2, 3)
def _(folder: Path) -> list[str]:
    import torch

    program = torch.export.export(torch.nn.Linear(4, 3), (torch.zeros(1, 4),))
    torch.export.save(program, folder / "good.pt2")
    with zipfile.ZipFile(folder / "good.pt2") as good, zipfile.ZipFile(folder / "m.pt2", "w") as bad:
        for entry in good.infolist():
            hostile = "sample_inputs" in entry.filename or entry.filename.endswith((".pt", ".pkl"))
            bad.writestr(entry.filename, pickle.dumps(Bomb()) if hostile else good.read(entry))
    np.savez(folder / "flat.npz", x=np.zeros((30, 4), np.float32), y=np.arange(30) % 3)
    return ["plan", "m.pt2", "--data", "flat.npz", "-o", "out", "--quiet"]


@gadget("pickle as .onnx", 3)
def _(folder: Path) -> list[str]:
    (folder / "m.onnx").write_bytes(pickle.dumps(Bomb()))
    return ["plan", "m.onnx", *DATA, "-o", "out", "--quiet"]


@gadget("checkpoint in the old tar format")
def _(folder: Path) -> list[str]:
    with tarfile.open(folder / "w.pth", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            payload = pickle.dumps(Bomb())
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))
    return weights(folder / "w.pth")


@gadget("TorchScript archive")
def _(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "w.pt", "w") as archive:
        archive.writestr("w/data.pkl", pickle.dumps(Bomb()))
        archive.writestr("w/code/__torch__.py", "import os; os.system('touch canary')")
        archive.writestr("w/constants.pkl", pickle.dumps(Bomb()))
    return weights(folder / "w.pt")


@gadget("array of objects in an npz")
def _(folder: Path) -> list[str]:
    np.savez(folder / "d.npz", x=np.array([Bomb()] * 4, object), y=np.arange(4), allow_pickle=True)
    return data(folder / "d.npz")


@gadget("class names that are objects in an npz")
def _(folder: Path) -> list[str]:
    names = np.array([Bomb()] * 3, object)
    np.savez(folder / "d.npz", x=np.zeros((6, 8, 8), np.uint8), y=np.arange(6) % 3, classes=names)
    return data(folder / "d.npz")


@gadget("array of objects in an npy")
def _(folder: Path) -> list[str]:
    np.save(folder / "d.npy", np.array([Bomb()], object), allow_pickle=True)
    return data(folder / "d.npy")


@gadget("pickle as .npz")
def _(folder: Path) -> list[str]:
    (folder / "d.npz").write_bytes(pickle.dumps(Bomb()))
    return data(folder / "d.npz")


# ------------------------------------------------------------------------------------------------------ safetensors
def _safetensors(name: str, header: bytes, size: int | None = None, body: bytes = bytes(64)) -> None:
    @gadget(f"safetensors: {name}")
    def make(folder: Path) -> list[str]:
        length = struct.pack("<Q", len(header) if size is None else size)
        (folder / "w.safetensors").write_bytes(length + header + body)
        return weights(folder / "w.safetensors")


_ROW = '"%s":{"dtype":"F32","shape":[%d],"data_offsets":[%d,%d]}'
_safetensors("header of 2^63 bytes", b"{}", 2**63)
_safetensors("header of 2^64 - 1 bytes", b"{}", 2**64 - 1)
_safetensors("overlapping tensors", f"{{{_ROW % ('a', 8, 0, 32)},{_ROW % ('b', 8, 16, 48)}}}".encode())
_safetensors("the same key twice", f"{{{_ROW % ('a', 8, 0, 32)},{_ROW % ('a', 8, 32, 64)}}}".encode())
_safetensors("a name that is no UTF-8", b'{"\xff\xfe":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}')
_safetensors("2^62 elements", f"{{{_ROW % ('a', 2**62, 0, 64)}}}".encode())
_safetensors("offsets beyond the end", f"{{{_ROW % ('a', 1024, 0, 4096)}}}".encode())
_safetensors("a header 100,000 deep", b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


# ------------------------------------------------------------------------------------------------ archives with data
def _png(width: int, height: int, body: bytes = b"") -> bytes:
    def chunk(kind: bytes, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


GOOD = _png(8, 8, b"\0" * 72)


def _zip(name: str, entries: dict[str, bytes]) -> None:
    @gadget(f"zip: {name}")
    def make(folder: Path) -> list[str]:
        with zipfile.ZipFile(folder / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, content in {"a/0.png": GOOD, "b/0.png": GOOD, **entries}.items():
                archive.writestr(entry, content)
        return data(folder / "d.zip")


_zip("a name with ..", {"../canary": b"x"})
_zip("an absolute name", {"/tmp/xdeploy-canary.png": GOOD})
_zip("a name with .. inside", {"a/../../canary": b"x"})
_zip("a name with backslashes", {"..\\canary": b"x"})
_zip("a drive", {"C:/canary.png": GOOD})
_zip("a bomb as an image", {"a/1.png": bytes(400 << 20)})
_zip("an image of 8 x 2^31 - 1", {"a/1.png": _png(8, 2**31 - 1)})


@gadget("zip: a bomb in a bomb")
def _(folder: Path) -> list[str]:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.png", bytes(64 << 20))
    with zipfile.ZipFile(folder / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(64):
            archive.writestr(f"a/{i}.zip", inner.getvalue())
    return data(folder / "d.zip")


@gadget("zip: a size that is a lie")
def _(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.png", bytes(64 << 20))
        archive.writestr("b/0.png", GOOD)
    raw = bytearray((folder / "d.zip").read_bytes())
    at = raw.index(b"PK\x01\x02")
    raw[at + 24 : at + 28] = struct.pack("<I", 100)  # what the directory says of the size
    (folder / "d.zip").write_bytes(raw)
    return data(folder / "d.zip")


@gadget("zip: a link out of it")
def _(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "d.zip", "w") as archive:
        for name in ("a/0.png", "b/0.png"):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o120777 << 16
            archive.writestr(entry, "/etc/passwd")
    return data(folder / "d.zip")


@gadget("npz: a bomb")
def _(folder: Path) -> list[str]:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (1 << 33,)})
    with (
        zipfile.ZipFile(folder / "d.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        file.write(head.getvalue())
        for _ in range(64):
            file.write(bytes(1 << 20))
    return data(folder / "d.npz")


@gadget("npz: 2^62 samples declared")
def _(folder: Path) -> list[str]:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (2**31, 2**31)})
    with zipfile.ZipFile(folder / "d.npz", "w") as archive:
        archive.writestr("x.npy", head.getvalue() + bytes(64))
        archive.writestr("y.npy", head.getvalue() + bytes(64))
    return data(folder / "d.npz")


@gadget("npz: a header that is an expression")
def _(folder: Path) -> list[str]:
    text = b"__import__('os').system('touch canary')".ljust(117) + b"\n"
    with zipfile.ZipFile(folder / "d.npz", "w") as archive:
        for name in ("x.npy", "y.npy"):
            archive.writestr(name, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
    return data(folder / "d.npz")


# ------------------------------------------------------------------------------------------------- images that lie
def _image(name: str, content: bytes, suffix: str = "png") -> None:
    @gadget(f"image: {name}")
    def make(folder: Path) -> list[str]:
        for label in "ab":
            (folder / "d" / label).mkdir(parents=True)
            (folder / "d" / label / f"0.{suffix}").write_bytes(content)
        return data(folder / "d")


_BIG = 2**31 - 1
_image("PNG of 2^31 - 1 squared", _png(_BIG, _BIG))
_image("PNG of 60,000 squared with 8 rows", _png(60_000, 60_000, bytes(8)))
_image("GIF of 65,535 squared", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"\x3b")
_image(
    "BMP of 2^31 - 1 squared",
    b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, _BIG, _BIG, 1, 24, 0, 0, 0, 0, 0, 0),
    "bmp",
)
_image(
    "JPEG of 65,535 squared",
    b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, 65535, 65535, 1) + b"\x01\x11\x00\xff\xd9",
    "jpg",
)
_TIFF = [(256, 4, 1, 2**31), (257, 4, 1, 2**31), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
         (278, 4, 1, 2**31), (279, 4, 1, 2**31)]  # fmt: skip
_image(
    "TIFF of 2^31 squared",
    b"II*\0\x08\0\0\0" + struct.pack("<H", len(_TIFF)) + b"".join(struct.pack("<HHII", *t) for t in _TIFF) + bytes(4),
)
_image("a PostScript program", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(canary) (w) file closefile\n")


@gadget("folder: links to devices and to itself")
def _(folder: Path) -> list[str]:
    for label in "ab":
        (folder / "d" / label).mkdir(parents=True)
    (folder / "d" / "a" / "0.png").symlink_to("/dev/zero")
    (folder / "d" / "b" / "0.png").symlink_to("/etc/passwd")
    (folder / "d" / "b" / "again").symlink_to(folder / "d")
    os.mkfifo(folder / "d" / "a" / "1.png")
    return data(folder / "d")


# ----------------------------------------------------------------------------------------------------------- texts
def _recipe(name: str, text: str) -> None:
    @gadget(f"recipe: {name}")
    def make(folder: Path) -> list[str]:
        (folder / "r.toml").write_text(text)
        return [*PLAN, *DATA, "--recipe", "r.toml"]


_recipe("YAML that calls", "!!python/object/apply:os.system ['touch canary']\n")
_recipe("a value that calls", "seed = __import__('os').system('touch canary')\n")
_recipe("arrays 100,000 deep", "seed = " + "[" * 100_000 + "]" * 100_000)
_recipe("a key of 50,000 parts", ".".join("a" * 50_000) + " = 1\n")
_recipe("a number of 100,000 digits", "seed = " + "9" * 100_000)


def _target(name: str, text: str) -> None:
    @gadget(f"target: {name}")
    def make(folder: Path) -> list[str]:
        (folder / "t.toml").write_text(text)
        return ["plan", "small_net:make", *DATA, "--target", "t.toml", "-o", "out", "--quiet"]


_target("YAML that calls", "!!python/object/apply:os.system ['touch canary']\n")
_target("tables 100,000 deep", "isa = " + "[" * 100_000 + "]" * 100_000)

DEEP = "[" * 200_000 + "]" * 200_000


@gadget("plan 200,000 deep")
def _(folder: Path) -> list[str]:
    (folder / "p.json").write_text('{"schema": "xdeploy.plan/1", "layers": ' + DEEP + "}")
    return [*PLAN, *DATA, "--plan", "p.json"]


def _manifest(verb: str, text: str, name: str, *more: str) -> None:
    @gadget(f"{verb}: {name}")
    def make(folder: Path) -> list[str]:
        (folder / "a").mkdir()
        (folder / "a" / "manifest.json").write_text(text)
        np.save(folder / "x.npy", np.zeros((1, 64), np.float32))
        return [verb, "a", *more, "--quiet"]


for _verb, _more in (("run", ("--inputs", "x.npy", "-o", "y.npy")), ("bench", ()), ("check", ("--max-flash", "1"))):
    _manifest(_verb, '{"schema": "xdeploy.manifest/1", "files": ' + DEEP + "}", "manifest 200,000 deep", *_more)
    _manifest(_verb, json.dumps({"schema": "xdeploy.manifest/1"}), "manifest without anything", *_more)
    _manifest(_verb, json.dumps({"schema": "xdeploy.manifest/1", "files": [1]}), "manifest with a list", *_more)


@gadget("run: inputs that are a pickle")
def _(folder: Path) -> list[str]:
    (folder / "a").mkdir()
    (folder / "a" / "manifest.json").write_text(json.dumps({"schema": "xdeploy.manifest/1", "files": {}, "io": {}}))
    np.save(folder / "x.npy", np.array([Bomb()], object), allow_pickle=True)
    return ["run", "a", "--inputs", "x.npy", "-o", "y.npy", "--quiet"]


@gadget("diff: run.json 200,000 deep")
def _(folder: Path) -> list[str]:
    (folder / "out").mkdir()
    (folder / "out" / "run.json").write_text('{"schema": "xdeploy.run/1", "request": ' + DEEP + "}")
    return ["diff", "out", "--quiet"]
