""".pt2 files: the same network as from the module, and nothing in a crafted file is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from xdeploy.errors import ModelError, UnsupportedError, UsageError
from xdeploy.model.frontend import front_end
from xdeploy.model.pt2 import load_program
from xdeploy.model.trace import network_of, trace


def module() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return nn.Sequential(*layers)


def export(path: Path, batch: int = 2, dynamic: bool = False, core: bool = False, train: bool = False) -> Path:
    shapes = ({0: torch.export.Dim("n", min=1, max=64)},) if dynamic else None
    program = torch.export.export(module().train(train), (torch.randn(batch, 3, 6, 6),), dynamic_shapes=shapes)
    torch.export.save(program.run_decompositions() if core else program, path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("pt2") / "net.pt2")


@pytest.mark.parametrize("options", [{"batch": 1}, {"dynamic": True}, {"dynamic": True, "core": True}])
def test_same_network_as_the_module(tmp_path: Path, options: dict[str, Any]) -> None:
    network = network_of(load_program(export(tmp_path / "net.pt2", **options)), "net")
    want = trace(module(), (3, 6, 6))
    assert [(x.name, x.kind, x.shape) for x in network.layers] == [(x.name, x.kind, x.shape) for x in want.layers]
    for name, params in want.params.items():
        for key, array in params.items():
            np.testing.assert_array_equal(network.params[name][key], array)


def test_front_end_reads_it(plain: Path) -> None:
    given = front_end(str(plain))
    assert (given.name, given.network(None).input.shape) == ("net", (3, 6, 6))
    with pytest.raises(UsageError, match="holds its own weights"):
        front_end(str(plain), plain)


def test_training_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"model\.eval\(\) before torch\.export"):
        network_of(load_program(export(tmp_path / "net.pt2", train=True)), "net")


# ------------------------------------------------------------------------------------------------ crafted files
class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def bomb_pickle(fuse: Path) -> bytes:
    return pickle.dumps(Bomb(fuse))


def bomb_torch(fuse: Path) -> bytes:
    file = io.BytesIO()
    torch.save(Bomb(fuse), file)
    return file.getvalue()


def edit(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, bytes], Path], None]:
    def apply(members: dict[str, bytes], fuse: Path) -> None:
        key = next(k for k in members if k.endswith(name))
        value = json.loads(members[key])
        change(value)
        members[key] = json.dumps(value).encode()

    return apply


def put(name: str, content: Callable[[Path], bytes]) -> Callable[[dict[str, bytes], Path], None]:
    def apply(members: dict[str, bytes], fuse: Path) -> None:
        members[f"net/{name}"] = content(fuse)

    return apply


def pickled_weight(members: dict[str, bytes], fuse: Path) -> None:
    edit("model_weights_config.json", lambda v: v["config"]["0.weight"].update(use_pickle=True))(members, fuse)
    members["net/data/weights/weight_0"] = bomb_torch(fuse)


def call(value: Any) -> None:
    value["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"


def shape(value: Any) -> None:
    size = {"as_expr": {"expr_str": "__import__('os').mkdir('fuse')", "hint": None}}
    value["graph_module"]["graph"]["tensor_values"]["input"]["sizes"][0] = size


CRAFTED: dict[str, tuple[Callable[[dict[str, bytes], Path], None], str]] = {
    "sample inputs": (put("data/sample_inputs/model.pt", bomb_pickle), "sample_inputs/model.pt"),
    "sample inputs by torch.save": (put("data/sample_inputs/model.pt", bomb_torch), "sample_inputs/model.pt"),
    "pickled weight": (pickled_weight, "pickled weights"),
    "old weights": (put("data/weights/model.pt", bomb_torch), "weights/model.pt"),
    "custom object": (put("data/constants/custom_obj_0", bomb_pickle), "custom_obj_0"),
    "opaque object": (put("data/constants/opaque_obj_0", bomb_pickle), "opaque_obj_0"),
    "machine code": (put("data/aotinductor/model/x.so", bomb_pickle), "x.so"),
    "foreign call": (edit("models/model.json", call), "torch.os.system"),
    "Python as a shape": (edit("models/model.json", shape), "__import__"),
    "no JSON": (put("models/model.json", lambda fuse: b"{"), "no JSON"),
    "leads out": (put("../x", lambda fuse: b""), "../x"),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_crafted_file_is_refused(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    change, words = CRAFTED[case]
    fuse, path = tmp_path / "fuse", tmp_path / "net.pt2"
    with zipfile.ZipFile(plain) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    change(members, fuse)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        load_program(path)
    assert words in str(caught.value)
    assert not fuse.exists()


def test_entry_given_twice_is_refused(plain: Path, tmp_path: Path) -> None:
    """Readers differ in which of two entries they take."""
    path = tmp_path / "net.pt2"
    path.write_bytes(plain.read_bytes())
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("net/models/model.json", "{}")
    with pytest.raises(UsageError, match="appears twice"):
        load_program(path)


@pytest.mark.parametrize(("content", "error"), [(b"junk", UsageError), (None, UsageError)])
def test_no_program(tmp_path: Path, content: bytes | None, error: type[Exception]) -> None:
    if content is not None:
        (tmp_path / "net.pt2").write_bytes(content)
    with pytest.raises(error, match=r"net\.pt2"):
        load_program(tmp_path / "net.pt2")


def test_unreadable_by_torch(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
        archive.writestr("net/models/model.json", "{}")
    with pytest.raises(ModelError, match="cannot be read"):
        load_program(tmp_path / "net.pt2")
