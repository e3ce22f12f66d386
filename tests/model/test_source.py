"""MODEL strings, weights, shapes and splits: the SourceModel as the pipeline gets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from xdeploy.errors import ModelError, UnsupportedError, UsageError, XdeployError
from xdeploy.files import read_json
from xdeploy.model.factory import declared_input, with_weights
from xdeploy.model.source import SourceModel, load_network, load_source
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import DataOptions

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=2):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)
    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))

def good(): return Net()
def three(): return Net(3)
def image(): return nn.Conv2d(3, 4, 1)
def needs(x): return Net()
def broken(): raise RuntimeError("no such luck")
def number(): return 3
ready = Net()
value = 3

class Declares(Net):
    xdeploy_input = {"shape": (3, 8, 8), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}
"""
OPTIONS = DataOptions()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    (folder / "xd_nets.py").write_text(FACTORY)
    (folder / "xd_syntax.py").write_text("def f(:\n")
    (folder / "xd_needs.py").write_text("import xd_not_installed\n")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "data.npz", x=x, y=np.arange(40) % 2)
    np.savez(folder / "test.npz", x=x[:10], y=np.arange(10) % 2)
    np.savez(folder / "small.npz", x=x[:, :5], y=np.arange(40) % 2)
    np.savez(folder / "few.npz", x=x[:2], y=np.arange(2))
    np.savez(folder / "named.npz", x=x, y=np.arange(40) % 2, classes=["a", "b"])
    np.savez(folder / "renamed.npz", x=x, y=np.arange(40) % 2, classes=["a", "c"])
    return folder


@pytest.fixture(autouse=True)
def _inside(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)


def load(model: str | nn.Module, data: str = "data.npz", test: str | None = None, **options: object) -> SourceModel:
    given = DataOptions(**{"validation": 0.1, **options})  # type: ignore[arg-type]
    return load_source(model, None, Path(data), Path(test) if test else None, given, 0)


# ------------------------------------------------------------------------------------------------------- splits
def test_held_out_split() -> None:
    s = load("xd_nets:good")
    parts = (s.train_indices, s.validation_indices, s.test_indices)
    assert [len(p) for p in parts] == [32, 4, 4]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(40))
    assert all(np.bincount(s.train.labels[p]).tolist() == [len(p) // 2] * 2 for p in parts)
    assert s.test_from == "held out of data.npz: 4 samples (10.0 %), the same share of each class"
    assert (s.name, s.io.input_shape, s.io.output_shape, s.io.labels) == ("good", (3, 8, 8), (2,), ("0", "1"))
    assert s.io.input_q is None
    assert s.io.output_name == s.network.output.name == "fc"


def test_test_data_of_its_own() -> None:
    s = load("xd_nets:good", test="test.npz", validation=0.25)
    assert [len(p) for p in (s.train_indices, s.validation_indices, s.test_indices)] == [30, 10, 10]
    assert s.test_from == "test.npz, all 10 samples"
    assert sum(len(y) for _, y in s.test_batches(3)) == s.test_count == 10


def test_batches_are_repeatable_and_cover_the_part() -> None:
    s = load("xd_nets:good")

    def labels_and_sums(batches: object) -> list[tuple[int, float]]:
        return [(int(y), float(x.sum())) for xs, ys in batches for x, y in zip(xs, ys, strict=True)]  # type: ignore[attr-defined]

    fixed = labels_and_sums(s.train_batches(5))
    assert fixed == labels_and_sums(s.train_batches(7))
    assert fixed[:6] == labels_and_sums(s.train_batches(4, limit=6))
    one, two = (labels_and_sums(s.train_batches(8, epoch=e)) for e in (1, 2))
    assert one != two
    assert sorted(one) == sorted(two) == sorted(fixed)
    assert labels_and_sums(s.train_batches(8, epoch=1, augment=True)) == one  # too small to be cropped
    assert len(labels_and_sums(s.validation_batches(250, limit=3))) == 3
    assert s.golden_inputs(2).shape == (2, 3, 8, 8)
    assert s.check_inputs(1000).shape == (4, 3, 8, 8)


def test_normalisation_comes_from_the_recipe_then_the_module() -> None:
    assert load("xd_nets:Declares").io.mean == (0.1, 0.2, 0.3)
    assert load("xd_nets:Declares", mean=(0.4,) * 3, std=(1.0,) * 3).io.mean == (0.4,) * 3
    assert load("xd_nets:good").io.mean == ()


def test_saved_and_loaded(tmp_path: Path) -> None:
    s = load("xd_nets:Declares", test="test.npz")
    s.save(tmp_path)
    again = SourceModel.load(tmp_path)
    assert again.to_dict() == s.to_dict()
    np.testing.assert_array_equal(again.validation_indices, s.validation_indices)
    x = torch.from_numpy(s.check_inputs(4))
    with torch.no_grad():
        assert torch.equal(NetworkModule(s.network)(x), NetworkModule(again.network)(x))
    head = read_json(tmp_path / "source.json", "xdeploy.source/1")
    assert head["model"] == {
        "name": "Declares", "sha256": s.sha256, "parameters": 3 * 4 * 9 + 4 + 4 * 2 + 2, "macs": 64 * 108 + 8,
        "float_bytes": {"value": 4 * 122, "unit": "byte", "how": "modelled", "note": "parameters as float32"},
    }  # fmt: skip
    assert {k: head["data"][k] for k in ("name", "train", "validation", "test")} == {
        "name": "data.npz", "train": 36, "validation": 4, "test": 10,
    }  # fmt: skip


def test_changed_data_is_noticed(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((40, 8, 8, 3), np.uint8), y=np.arange(40) % 2)
    load("xd_nets:good", str(tmp_path / "d.npz")).save(tmp_path)
    np.savez(tmp_path / "d.npz", x=np.ones((40, 8, 8, 3), np.uint8), y=np.arange(40) % 2)
    with pytest.raises(UsageError, match="has changed"):
        SourceModel.load(tmp_path)


def test_hash_is_of_layers_and_weights() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    first = load(module).sha256
    assert load(module).sha256 == first
    module[1].bias.data[0] += 1e-3
    assert load(module).sha256 != first


def test_network_alone() -> None:
    network, declared = load_network("xd_nets:Declares", None, None, OPTIONS)
    assert (network.input.shape, declared.std) == ((3, 8, 8), (0.5, 0.5, 0.5))
    assert load_network("xd_nets:good", None, Path("data.npz"), OPTIONS)[0].output.shape == (2,)
    assert load_network("xd_nets:ready", None, Path("data.npz"), OPTIONS)[0].output.shape == (2,)
    assert load_network(None, None, None, OPTIONS)[0].output.shape == (10,)


# ------------------------------------------------------------------------------------------------------ refused
MISTAKES: dict[str, tuple[type[XdeployError], tuple[str, ...], str, str | None, str | None]] = {
    # name: error, words of the message, model, data, test data
    "no module": (UsageError, ("xd_nosuch",), "xd_nosuch:f", "data.npz", None),
    "no submodule": (UsageError, ("xd_nets.deep",), "xd_nets.deep:f", "data.npz", None),
    "no attribute": (UsageError, ("godo", "did you mean 'good'"), "xd_nets:godo", "data.npz", None),
    "a value": (UsageError, ("value", "int", "factory"), "xd_nets:value", "data.npz", None),
    "gives no module": (UsageError, ("int", "torch.nn.Module"), "xd_nets:number", "data.npz", None),
    "fails": (ModelError, ("RuntimeError", "no such luck"), "xd_nets:broken", "data.npz", None),
    "needs arguments": (ModelError, ("TypeError", "without arguments"), "xd_nets:needs", "data.npz", None),
    "syntax error": (ModelError, ("xd_syntax", "SyntaxError"), "xd_syntax:f", "data.npz", None),
    "missing import": (ModelError, ("xd_not_installed",), "xd_needs:f", "data.npz", None),
    "no colon": (UsageError, ("'xd_nets'", "package.module:factory"), "xd_nets", "data.npz", None),
    "a file": (UsageError, ("package.module:factory",), "xd_nets.py", "data.npz", None),
    "empty module": (UsageError, (":good",), ":good", "data.npz", None),
    "a pickle": (UsageError, ("net.pth", "pickles", "safetensors"), "net.pth", "data.npz", None),
    "no onnx": (UsageError, ("absent.onnx", "does not exist"), "absent.onnx", "data.npz", None),
    "broken onnx": (ModelError, ("net.onnx", "not an ONNX file"), "net.onnx", "data.npz", None),
    "no data": (UsageError, ("xd_nets:good", "--data"), "xd_nets:good", None, None),
    "wrong size": (UsageError, ("(3, 8, 8)", "(3, 5, 8)"), "xd_nets:Declares", "small.npz", None),
    "wrong test size": (UsageError, ("small.npz", "(3, 5, 8)"), "xd_nets:good", "data.npz", "small.npz"),
    "wrong classes": (UsageError, ("3 outputs", "2 classes"), "xd_nets:three", "named.npz", None),
    "other classes": (UsageError, ("renamed.npz", "b, c"), "xd_nets:good", "named.npz", "renamed.npz"),
    "no scores": (UnsupportedError, ("(4, 8, 8)", "one score per class"), "xd_nets:image", "data.npz", None),
    "few samples": (UsageError, ("2 samples",), "xd_nets:good", "few.npz", None),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake(work: Path, case: str) -> None:
    kind, words, model, data, test = MISTAKES[case]
    (work / "net.onnx").write_bytes(b"x")
    paths = [Path(p) if p else None for p in (data, test)]
    with pytest.raises(kind) as caught:
        load_source(model, None, *paths, OPTIONS, 0)
    assert type(caught.value) is kind
    assert not [w for w in words if w not in str(caught.value)], str(caught.value)


def test_shares_that_leave_nothing() -> None:
    for validation, words in ((0.5, "leaves nothing to train with"), (0.0, "no validation samples")):
        with pytest.raises(UsageError, match=words):
            load("xd_nets:good", validation=validation)


def test_demo_takes_no_data() -> None:
    with pytest.raises(UsageError, match="need a MODEL"):
        load_source(None, None, Path("data.npz"), None, OPTIONS, 0)


@pytest.mark.parametrize(
    ("value", "words"),
    [({"shapes": 3}, "shape"), ([3], "dict"), ({"shape": (3, 4, 5, 6)}, r"\(3, 4, 5, 6\)"), ({"mean": "x"}, "usable")],
)
def test_declared_input_is_checked(value: object, words: str) -> None:
    module = nn.ReLU()
    module.xdeploy_input = value  # type: ignore[assignment]
    with pytest.raises(UsageError, match=words):
        declared_input(module)


# ------------------------------------------------------------------------------------------------------ weights
class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y


def test_weights_are_cast_and_the_module_stays(tmp_path: Path) -> None:
    module, other = Net(), Net()
    state = {k: v for k, v in other.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file({k: v.half() for k, v in state.items()}, tmp_path / "w.safetensors")
    before = module.conv.weight.clone()
    loaded = with_weights(module, tmp_path / "w.safetensors")
    assert torch.equal(module.conv.weight, before)
    assert torch.equal(loaded.conv.weight, other.conv.weight.half().float())  # type: ignore[union-attr]


def test_tied_weights_may_be_saved_once(tmp_path: Path) -> None:
    module = nn.Sequential(a := nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = a.weight
    state = {k: v + 1 for k, v in module.state_dict().items() if k != "1.weight"}
    save_file(state, tmp_path / "w.safetensors")
    loaded = with_weights(module, tmp_path / "w.safetensors")
    assert torch.equal(loaded[1].weight, state["0.weight"])  # type: ignore[index]


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    state = Net().state_dict()
    state["conv.weight"] = torch.zeros(4, 3, 5, 5)
    state["conv.bias"] = torch.zeros(4, dtype=torch.int32)
    state["extra"] = state.pop("norm.weight")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UsageError) as caught:
        with_weights(Net(), tmp_path / "w.safetensors")
    words = (
        "missing: norm.weight", "unexpected: extra", "conv.weight: (4, 3, 5, 5) instead of (4, 3, 3, 3)",
        "conv.bias: torch.int32", "w.safetensors",
    )  # fmt: skip
    assert not [w for w in words if w not in str(caught.value)], str(caught.value)
    save_file({f"module.{k}": v for k, v in Net().state_dict().items()}, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"model\.module\.state_dict"):
        with_weights(Net(), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("w.pth", b"\x80\x04K\x01.", "safetensors"),
        ("w.safetensors", b"junk", "not a readable safetensors"),
        ("nowhere.safetensors", None, "do not exist"),
    ],
)
def test_weights_that_are_none(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=words):
        with_weights(Net(), tmp_path / name)


def test_source_json_is_plain(tmp_path: Path) -> None:
    load("xd_nets:good").save(tmp_path)
    text = (tmp_path / "source.json").read_text()
    assert json.loads(text)["layers"][1] == {
        "name": "conv", "kind": "conv2d", "inputs": ["input"], "shape": [4, 8, 8],
        "attrs": {"stride": [1, 1], "pads": [1, 1, 1, 1], "dilation": [1, 1], "groups": 1},
    }  # fmt: skip
