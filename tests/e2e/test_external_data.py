"""--allow-external-data: torch's own files are built like any other; everything that a location could abuse is refused.

What may be read is one thing: a regular file of one name, beside the model, within its size.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.fuzz.hostile import external, with_initialiser
from xdeploy.cli import main
from xdeploy.errors import ModelError
from xdeploy.onnxfile import checked_bytes, digest, is_quantised, load_model
from xdeploy.permission import external_data

FLAG = "--allow-external-data"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what torch's default exporter writes (net.onnx, net.onnx.data), and data for it."""
    import torch
    from torch import nn

    folder = tmp_path_factory.mktemp("external")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
    ).eval()  # fmt: skip
    given = (torch.randn(1, 1, 8, 8),)
    names = {"input_names": ["image"], "output_names": ["class:scores"]}
    torch.onnx.export(net, given, folder / "net.onnx", dynamo=True, external_data=True, verbose=False, **names)
    assert (folder / "net.onnx.data").stat().st_size > 5000
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.normal(size=(120, 1, 8, 8)).astype(np.float32), y=np.arange(120) % 10)
    return folder


def test_refused_without_the_flag(exported: Path, capsys: Capture) -> None:
    assert main(["check", str(exported / "net.onnx")]) == 3
    text = "".join(capsys.readouterr())
    assert FLAG in text
    assert "net.onnx.data" in text


def test_the_same_codes_as_from_one_file(exported: Path, tmp_path: Path) -> None:
    """Built from two files and from one, the lowered graphs agree."""
    one = tmp_path / "net.onnx"
    onnx.save(onnx.load(exported / "net.onnx"), one)
    out = {}
    for name, model, more in (("two", exported / "net.onnx", [FLAG]), ("one", one, [])):
        out[name] = tmp_path / name
        line = ["compile", str(model), "--data", str(exported / "data.npz"), "--target", "x86-64", "-o"]
        assert main([*line, str(out[name]), "--set", "bench.accuracy=false", "--quiet", *more]) == 0
    assert (out["two"] / "graph.txt").read_text() == (out["one"] / "graph.txt").read_text()
    assert json.loads((out["two"] / "run.json").read_text())["request"]["recipe"]["lower"]["external_data"] is True


def test_ports_keep_the_names_of_the_file(exported: Path, tmp_path: Path) -> None:
    """In the exported ONNX file and in the C header, as far as their characters allow."""
    out = tmp_path / "out"
    line = ["compile", str(exported / "net.onnx"), "--data", str(exported / "data.npz"), "--target", "x86-64", FLAG]
    assert main([*line, "--form", "portable", "--quiet", "-o", str(out)]) == 0
    graph = onnx.load(out / "model.onnx").graph
    assert [graph.input[0].name, graph.output[0].name] == ["image", "class_scores"]
    header = "".join(p.read_text() for p in (out / "x86-64").rglob("*.h"))
    assert '_INPUT_NAME "image"' in header
    assert '_OUTPUT_NAME "class_scores"' in header


def test_diff_takes_the_flag(exported: Path, capsys: Capture) -> None:
    assert main(["diff", str(exported / "net.onnx"), "--json"]) == 3
    capsys.readouterr()
    assert main(["diff", str(exported / "net.onnx"), "--json", FLAG]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"][0]["equal"] is True


def test_the_digest_covers_the_data(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "copy")
    model, data = folder / "net.onnx", folder / "net.onnx.data"
    with external_data(True):
        before = digest(model)
        changed = bytearray(data.read_bytes())
        changed[-1] ^= 1
        data.write_bytes(changed)
        assert digest(model) != before
    assert is_quantised_refuses(model)


def is_quantised_refuses(model: Path) -> bool:
    """Without the permission even asking what the file is opens nothing."""
    with pytest.raises(ModelError, match="another file"):
        is_quantised(model)
    return True


def test_a_changed_data_file_is_a_changed_model(exported: Path, tmp_path: Path) -> None:
    """A second run skips all stages; after a change of the data file alone it does not."""
    folder = shutil.copytree(exported, tmp_path / "copy")
    line = ["explain", str(folder / "net.onnx"), "--data", str(folder / "data.npz"), FLAG, "--quiet", "-o"]
    assert main([*line, str(tmp_path / "out")]) == 0
    key = [json.loads((tmp_path / "out" / "run.json").read_text())["stages"]["source"]["key"]]
    data = folder / "net.onnx.data"
    data.write_bytes(data.read_bytes()[:-4] + np.float32(0.5).tobytes())
    assert main([*line, str(tmp_path / "out")]) == 0
    key.append(json.loads((tmp_path / "out" / "run.json").read_text())["stages"]["source"]["key"])
    assert key[0] != key[1]


def test_a_file_without_external_data_has_its_own_hash(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(with_initialiser(numpy_helper.from_array(np.zeros(4, np.float32), "w")).SerializeToString())
    assert digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checked_bytes(path) == path.read_bytes()


# ------------------------------------------------------------------------------------------------- abuse
def _model(folder: Path, location: str = "w.bin", **more: str) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(with_initialiser(external("w", location, more)).SerializeToString())
    return path


def _loaded(path: Path) -> Any:
    with external_data(True):
        model = load_model(path)
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "w")


@pytest.mark.parametrize(
    ("more", "first"),
    [({}, 0), ({"offset": "4", "length": "16"}, 1), ({"offset": "16"}, 4), ({"offset": "8", "checksum": "sha"}, 2)],
)
def test_ranges_inside_the_file_are_read(tmp_path: Path, more: dict[str, str], first: int) -> None:
    values = np.arange(8, dtype=np.float32)
    (tmp_path / "w.bin").write_bytes(values.tobytes())
    if "checksum" in more:
        more = {**more, "checksum": hashlib.sha1(values.tobytes()).hexdigest()}
    assert _loaded(_model(tmp_path, **more)).tolist() == values[first : first + 4].tolist()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"offset": "20"}, "asks for bytes 20 to 36"), ({"offset": "-1"}, "no number"),
        ({"offset": "1e1"}, "no number"),
        ({"offset": str(2**63)}, "asks for bytes"), ({"offset": "9" * 30}, "no number"), ({"offset": "²"}, "no number"),
        ({"length": "12"}, "asks for 12"), ({"length": "17"}, "asks for 17"), ({"length": "0"}, "asks for 0"),
        ({"length": str(2**62)}, "asks for"), ({"length": "-4"}, "no number"), ({"checksum": "0" * 40}, "SHA-1"),
        ({"basepath": "/etc"}, "malformed"),
    ],
)  # fmt: skip
def test_ranges_and_keys_are_checked(tmp_path: Path, more: dict[str, str], reason: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(32))
    with pytest.raises(ModelError, match=reason):
        _loaded(_model(tmp_path, **more))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda file, outside: file.hardlink_to(outside), "2 names"),
        (lambda file, outside: file.symlink_to(outside), "is a link"),
        (lambda file, outside: os.mkfifo(file), "not a regular file"),
        (lambda file, outside: file.mkdir(), "not a regular file"),
        (lambda file, outside: None, "No such file"),
        (lambda file, outside: file.write_bytes(b""), "asks for bytes"),
    ],
    ids=["hard link", "symlink", "pipe", "folder", "missing", "empty"],
)
def test_only_a_regular_file_of_one_name(tmp_path: Path, make: Callable[[Path, Path], Any], reason: str) -> None:
    outside = tmp_path / "outside.bin"
    outside.write_bytes(bytes(64))
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder / "w.bin", outside)
    with pytest.raises(ModelError, match=reason):
        _loaded(_model(folder))


def test_swapped_for_a_link_between_check_and_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link is not followed even if it takes the file's place after the file was looked at."""
    (tmp_path / "w.bin").write_bytes(bytes(16))
    (tmp_path / "secret").write_bytes(b"s" * 16)
    model, real = _model(tmp_path), os.open

    def swapping(path: Any, *args: Any, **kwargs: Any) -> int:
        if path == "w.bin":
            (tmp_path / "w.bin").unlink()
            (tmp_path / "w.bin").symlink_to(tmp_path / "secret")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", swapping)
    monkeypatch.setattr(os, "supports_dir_fd", {*os.supports_dir_fd, swapping})
    with pytest.raises(ModelError, match="cannot be read"):
        _loaded(model)


def test_a_linked_model_says_what_to_do(tmp_path: Path) -> None:
    """As in the cache of a model hub, where all files are links."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    (blobs / "w").write_bytes(bytes(16))
    _model(blobs).rename(blobs / "m")
    (snapshot / "m.onnx").symlink_to(blobs / "m")
    (snapshot / "w.bin").symlink_to(blobs / "w")
    with pytest.raises(ModelError, match="is a link") as caught:
        _loaded(snapshot / "m.onnx")
    assert "cp -L" in str(caught.value)


@pytest.mark.parametrize("name", ["m.onnx", ".", "..", ".hidden", "a/b", "a\\b", "w.bin:stream", "w.bin ", "a\nb", ""])
def test_names_that_are_no_plain_names(tmp_path: Path, name: str) -> None:
    (tmp_path / ".hidden").write_bytes(bytes(16))
    with pytest.raises(ModelError, match="refused"):
        _loaded(_model(tmp_path, name))


def test_sizes_are_checked_before_reading(tmp_path: Path) -> None:
    """2^26 elements at most, and 2 GiB of all tensors together; the (sparse) file is not read."""
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(2**40)
    path = _model(tmp_path)
    with pytest.raises(ModelError, match="all together have at most"):
        _loaded(path)
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[-1]
    tensor.dims[:] = [2**26]
    for k in range(9):
        copy = model.graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = f"copy{k}"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="more than 2147483647 bytes"):
        _loaded(path)


def test_data_here_and_there(tmp_path: Path) -> None:
    tensor = external("w", "w.bin")
    tensor.raw_data = bytes(16)
    (tmp_path / "m.onnx").write_bytes(with_initialiser(tensor).SerializeToString())
    with pytest.raises(ModelError, match="here and in another file"):
        _loaded(tmp_path / "m.onnx")


def test_int4_is_measured_in_half_bytes(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"\x21\x03")
    tensor = TensorProto(name="w", data_type=TensorProto.INT4, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    model = with_initialiser(tensor)
    model.graph.node.append(helper.make_node("Identity", ["w"], ["more"]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert _loaded(tmp_path / "m.onnx").astype(int).tolist() == [1, 2, 3]
