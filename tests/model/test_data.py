"""Data sets: what is read, what is refused and how, batches against a plain formula, splits by counting."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xdeploy.errors import UsageError
from xdeploy.model import decoder, decoding, images
from xdeploy.model.data import check_classes, load_data

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)  # 12 images, 5 wide and 6 high


def png(pixels: np.ndarray, mode: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, mode)
    return file.getvalue()


def write_folder(root: Path, count: int = 12) -> Path:
    """Images i with class 'cat' for even i and 'ant' for odd."""
    for i in range(count):
        path = root / ("cat", "ant")[i % 2] / f"{i:02}.{('png', 'bmp')[i // 2 % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(PIXELS[i], ("PNG", "BMP")[i // 2 % 2]))
    return root


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def members(top: str = "") -> dict[str, bytes]:
    return {f"{top}{('cat', 'ant')[i % 2]}/{i:02}.png": png(PIXELS[i]) for i in range(12)}


# -------------------------------------------------------------------------------------------------- what is read
def test_folder(tmp_path: Path) -> None:
    data = load_data(write_folder(tmp_path / "d"))
    order = [*range(1, 12, 2), *range(0, 12, 2)]  # ants first
    assert data.classes == ("ant", "cat")
    np.testing.assert_array_equal(data.labels, [0] * 6 + [1] * 6)
    np.testing.assert_array_equal(data.samples, PIXELS[order])
    assert (data.samples.dtype, data.labels.dtype, data.shape, len(data)) == (np.uint8, np.int64, (3, 6, 5), 12)


@pytest.mark.parametrize("top", ["", "set/", "a/b/"])
def test_zip_is_the_folder(tmp_path: Path, top: str) -> None:
    extra = {"__MACOSX/cat/._1.png": b"x", f"{top}README.txt": b"x", f"{top}cat/.hidden.png": b"x"}
    packed = load_data(write_zip(tmp_path / "d.zip", {**members(top), **extra}))
    plain = load_data(write_folder(tmp_path / "d"))
    assert (packed.fingerprint, packed.classes) == (plain.fingerprint, plain.classes)


def test_grey(tmp_path: Path) -> None:
    for i in range(4):
        path = tmp_path / "d" / str(i % 2) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(PIXELS[i, ..., 0]))
    assert load_data(tmp_path / "d").samples.shape == (4, 6, 5, 1)
    assert load_data(tmp_path / "d", channels=3).samples.shape == (4, 6, 5, 3)
    np.testing.assert_array_equal(load_data(tmp_path / "d", channels=1).samples[1, ..., 0], PIXELS[2, ..., 0])
    (tmp_path / "d" / "0" / "9.png").write_bytes(png(PIXELS[0]))
    assert load_data(tmp_path / "d").samples.shape == (5, 6, 5, 3)


@pytest.mark.parametrize("names", [("x", "y"), ("inputs", "labels"), ("images", "targets")])
def test_npz_of_images(tmp_path: Path, names: tuple[str, str]) -> None:
    y = np.arange(12) % 3
    np.savez(tmp_path / "d.npz", **{names[0]: PIXELS, names[1]: y.reshape(-1, 1)})
    data = load_data(tmp_path / "d.npz", mean=(0.1,), std=(0.5,))
    x, labels = next(iter(data.batches(np.array([3, 1]), 8)))
    want = (PIXELS[[3, 1]].astype(np.float64) / 255 - 0.1) / 0.5
    np.testing.assert_allclose(x.numpy(), want.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(labels, [0, 1])
    assert (data.classes, data.named) == (("0", "1", "2"), False)


def test_npz_of_grey_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=PIXELS[..., 0], y=np.arange(12) % 2, classes=np.array(["no", "yes", "maybe"]))
    data = load_data(tmp_path / "d.npz")
    assert (data.shape, data.classes, data.named) == ((1, 6, 5), ("no", "yes", "maybe"), True)


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4, 7)])
def test_npz_of_floats_is_used_as_it_is(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = RNG.normal(size=shape)
    np.savez(tmp_path / "d.npz", x=x, y=[0, 1, 0, 1])
    data = load_data(tmp_path / "d.npz", mean=(0.5,), std=(0.5,))
    assert (data.shape, data.mean, data.samples.dtype) == (shape[1:], (), np.float32)
    np.testing.assert_array_equal(next(iter(data.batches(np.arange(4), 4)))[0], x.astype(np.float32))


def test_batches_normalise_per_channel(tmp_path: Path) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    data = load_data(write_folder(tmp_path), mean=mean, std=std)
    batches = list(data.batches(np.arange(12), 5))
    assert [len(y) for _, y in batches] == [5, 5, 2]
    x = np.concatenate([b.numpy() for b, _ in batches])
    want = (data.samples / 255.0 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(x, want.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
    assert x.dtype == np.float32


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    y = np.arange(12) % 2

    def of(**arrays: Any) -> str:
        np.savez(tmp_path / "d.npz", **arrays)
        return load_data(tmp_path / "d.npz", mean=(0.5,), std=(0.5,)).fingerprint

    same = of(x=PIXELS, y=y)
    changed = PIXELS.copy()
    changed[3, 2, 1, 0] ^= 1
    assert same == of(inputs=PIXELS, labels=y.astype(np.uint8))
    assert len({same, of(x=changed, y=y), of(x=PIXELS, y=1 - y), of(x=PIXELS, y=y, classes=["a", "b"])}) == 4


# ------------------------------------------------------------------------------------------------------- splits
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_split_is_stratified_and_repeatable(tmp_path: Path, share: float) -> None:
    y = np.repeat([0, 1, 2], [100, 40, 60])
    np.savez(tmp_path / "d.npz", x=np.zeros((200, 2), np.float32), y=RNG.permutation(y))
    data = load_data(tmp_path / "d.npz")
    rest, part = data.split(share, 5)
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, part])), np.arange(200))
    np.testing.assert_array_equal(np.bincount(data.labels[part]), np.round(np.array([100, 40, 60]) * share))
    np.testing.assert_array_equal(part, data.split(share, 5)[1])
    assert not np.array_equal(part, data.split(share, 6)[1])
    again, inner = data.split(0.5, 1, among=rest)
    np.testing.assert_array_equal(np.sort(np.concatenate([again, inner])), rest)


def test_split_of_few_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((5, 2), np.float32), y=[0, 0, 0, 1, 1])
    data = load_data(tmp_path / "d.npz")
    rest, part = data.split(0.1, 0)
    assert set(data.labels[part]) == set(data.labels[rest]) == {0, 1}
    assert len(data.split(0.0, 0)[1]) == 0


def test_augmented_batches_are_shifts_and_flips(tmp_path: Path) -> None:
    """Every augmented image is one of the 81 crops of the padded one, or its mirror image."""
    x = RNG.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(8) % 2)
    data = load_data(tmp_path / "d.npz")
    got, _ = next(iter(data.batches(np.arange(8), 8, np.random.default_rng(1))))
    pixels = np.rint(got.numpy().transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    flips = 0
    for image, padded in zip(pixels, np.pad(x, ((0, 0), (4, 4), (4, 4), (0, 0))), strict=True):
        crops = [padded[i : i + 16, j : j + 16] for i in range(9) for j in range(9)]
        plain, mirrored = (any(np.array_equal(c[:, ::s], image) for c in crops) for s in (1, -1))
        assert plain or mirrored
        flips += mirrored
    assert 0 < flips < 8


# ------------------------------------------------------------------------------------------------------ refused
def folder(change: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def make(tmp: Path) -> Path:
        root = write_folder(tmp / "d")
        change(root)
        return root

    return make


def packed(extra: dict[str, bytes]) -> Callable[[Path], Path]:
    return lambda tmp: write_zip(tmp / "d.zip", {**members(), **extra})


def npz(**arrays: Any) -> Callable[[Path], Path]:
    def make(tmp: Path) -> Path:
        np.savez(tmp / "d.npz", **arrays)
        return tmp / "d.npz"

    return make


def content(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(tmp: Path) -> Path:
        (tmp / name).write_bytes(data)
        return tmp / name

    return make


def bomb(tmp: Path) -> Path:
    """A zip whose entry declares more than the limit (its header is changed after writing)."""
    path = write_zip(tmp / "d.zip", {**members(), "cat/big.png": b"x" * 1000})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"cat/big.png") - 46
    assert data[at : at + 4] == b"PK\x01\x02"
    data[at + 24 : at + 28] = (images.MAX_FILE + 1).to_bytes(4, "little")
    path.write_bytes(data)
    return path


F32 = np.zeros((4, 2), np.float32)
REFUSED: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "missing": (lambda tmp: tmp / "nowhere", ("nowhere", "does not exist")),
    "empty folder": (lambda tmp: (tmp / "empty").mkdir() or tmp / "empty", ("empty", "no images", "CLASS/IMAGE")),
    "one class": (folder(lambda d: [p.unlink() for p in (d / "ant").iterdir()]), ("one class", "cat")),
    "corrupt": (folder(lambda d: (d / "cat" / "zz.png").write_bytes(b"no image")), ("zz.png", "not a readable image")),
    "truncated": (folder(lambda d: (d / "cat" / "zz.png").write_bytes(png(PIXELS[0])[:-40])), ("zz.png",)),
    "other size": (folder(lambda d: (d / "cat" / "zz.png").write_bytes(png(PIXELS[0, 1:]))), ("zz.png", "5x5", "5x6")),
    "16 bit": (folder(lambda d: (d / "cat" / "zz.png").write_bytes(png(np.zeros((6, 5), np.uint16)))), ("8 bit",)),
    "loose image": (folder(lambda d: (d / "zz.png").write_bytes(png(PIXELS[0]))), ("zz.png", "no class folder")),
    "splits": (
        lambda tmp: write_zip(tmp / "d.zip", members("train/") | members("test/")), ("train", "--test-data")
    ),
    "other file": (content("d.txt", b""), ("d.txt", "not supported")),
    "no zip": (content("d.zip", b"PK no"), ("d.zip", "not a readable zip")),
    "zip leads out": (packed({"../cat/1.png": b""}), ("'../cat/1.png'", "outside")),
    "zip absolute": (packed({"/cat/1.png": b""}), ("'/cat/1.png'", "outside")),
    "zip drive": (packed({"C:/cat/1.png": b""}), ("'C:/cat/1.png'", "outside")),
    "zip backslash": (packed({"cat\\..\\..\\1.png": b""}), ("outside",)),
    "zip bomb": (bomb, ("big.png", "limit")),
    "no npz": (content("d.npz", b"\x93NUMPY"), ("d.npz", "not a readable npz")),
    "pickle as npz": (content("d.npz", b"\x80\x04K\x01."), ("d.npz",)),
    "pickled objects": (npz(x=F32, y=np.array([0, 1, {}, None], object)), ("pickled", "refused")),
    "NaN": (npz(x=np.where(np.arange(8).reshape(4, 2) == 5, np.nan, F32), y=[0, 1, 0, 1]), ("NaN", "sample 2")),
    "infinity": (npz(x=F32 + np.inf, y=[0, 1, 0, 1]), ("infinity", "sample 0")),
    "no y": (npz(x=F32), ("y, labels, targets", "none")),
    "no x": (npz(y=[0, 1]), ("x, inputs, images", "none")),
    "two x": (npz(x=F32, images=F32, y=[0, 1, 0, 1]), ("exactly one", "images")),
    "y too short": (npz(x=F32, y=[0, 1, 0]), ("4 samples", "3 labels")),
    "float y": (npz(x=F32, y=[0.0, 1, 0, 1]), ("float64", "integers")),
    "one-hot y": (npz(x=F32, y=np.eye(4, 2, dtype=int)), ("argmax",)),
    "negative y": (npz(x=F32, y=[0, 1, -1, 1]), ("-1..1",)),
    "large y": (npz(x=F32, y=[0, 1, 10**9, 1]), ("1000000000",)),
    "names too few": (npz(x=F32, y=[0, 1, 2, 1], classes=["a", "b"]), ("2 names",)),
    "one class in y": (npz(x=F32, y=[0, 0, 0, 0]), ("one class",)),
    "empty npz": (npz(x=F32[:0], y=np.zeros(0, int)), ("0 samples",)),
    "integer x": (npz(x=F32.astype(int), y=[0, 1, 0, 1]), ("int64", "uint8")),
    "uint8 features": (npz(x=F32.astype(np.uint8), y=[0, 1, 0, 1]), ("(4, 2)", "(N, H, W)")),
    "channels first": (npz(x=np.zeros((4, 3, 8, 8), np.uint8), y=[0, 1, 0, 1]), ("(4, 3, 8, 8)", "(N, H, W, C)")),
    "rank": (npz(x=np.zeros((4, 2, 2, 2, 2), np.float32), y=[0, 1, 0, 1]), ("(4, 2, 2, 2, 2)",)),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    make, words = REFUSED[case]
    path = make(tmp_path)
    with pytest.raises(UsageError) as caught:
        load_data(path)
    assert not [w for w in (*words, path.name) if w not in str(caught.value)], str(caught.value)


def test_pixels_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "MAX_PIXELS", 20)
    with pytest.raises(UsageError, match="5x6 pixels"):
        load_data(write_folder(tmp_path))
    monkeypatch.setattr(decoder, "MAX_PIXELS", 100)
    monkeypatch.setattr(decoding, "MAX_TOTAL", 1000)
    with pytest.raises(UsageError, match="12 images of 5x6"):
        load_data(tmp_path)


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        ((0.5,), (), "together"),
        ((0.5, 0.5), (1.0, 1.0), "3 values"),
        ((0.5,), (0.0,), "> 0"),
        ((np.nan,), (1.0,), "finite"),
    ],
)
def test_mean_and_std_must_fit(tmp_path: Path, mean: tuple[float, ...], std: tuple[float, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_data(write_folder(tmp_path), mean=mean, std=std)


def test_classes_must_fit_the_outputs(tmp_path: Path) -> None:
    named = load_data(write_folder(tmp_path / "d"))
    check_classes(named, 2)
    for outputs in (1, 3):
        with pytest.raises(UsageError, match=rf"{outputs} outputs.* 2 classes \(ant, cat\)"):
            check_classes(named, outputs)
    np.savez(tmp_path / "d.npz", x=F32, y=[0, 1, 2, 1])
    check_classes(load_data(tmp_path / "d.npz"), 10)
    with pytest.raises(UsageError, match="2 outputs"):
        check_classes(load_data(tmp_path / "d.npz"), 2)


def test_progress_is_told_for_many_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int]] = []
    write_folder(tmp_path)
    load_data(tmp_path, progress=lambda *step: seen.append(step))
    assert not seen
    monkeypatch.setattr(decoding, "BAR_FROM", 5)
    load_data(tmp_path, progress=lambda *step: seen.append(step))
    assert seen[0] == ("reading images", 0, 12)


@pytest.mark.shared
def test_shared_cifar(shared: Path) -> None:
    data = load_data(shared / "data" / "cifar10-jpeg-test.zip")
    assert (data.samples.shape, len(data.classes)) == ((10_000, 32, 32, 3), 10)
    np.testing.assert_array_equal(np.bincount(data.labels), [1000] * 10)


@pytest.mark.parametrize("what", ["encrypted", "compressed in a way of its own"])
def test_zips_that_cannot_be_unpacked(tmp_path: Path, what: str) -> None:
    """zipfile reports both as a RuntimeError (the second as its child NotImplementedError)."""
    folder = write_folder(tmp_path / "images")
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    data = bytearray(write_zip(tmp_path / "data.zip", files).read_bytes())
    field, value = (0, 1) if what == "encrypted" else (2, 99)  # general purpose flags; method
    for head, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(head)
        while place >= 0:
            data[place + at + field] = value
            place = data.find(head, place + 1)
    (tmp_path / "data.zip").write_bytes(data)
    with pytest.raises(UsageError, match=r"is encrypted|is not a readable zip"):
        load_data(tmp_path / "data.zip")


def test_groups_are_never_parted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), rng.integers(1, 6, 40))
    y = groups % 3
    order = rng.permutation(len(y))
    arrays = {"x": rng.normal(size=(len(y), 5)).astype(np.float32)[order], "y": y[order], "groups": groups[order]}
    np.savez(tmp_path / "d.npz", **arrays)
    data = load_data(tmp_path / "d.npz")
    rest, held = data.split(0.25, seed=3)
    assert sorted([*rest, *held]) == list(range(len(y)))
    ours = arrays["groups"]
    assert not set(ours[rest]) & set(ours[held])
    assert len(set(ours[held])) == sum(round((np.arange(40) % 3 == c).sum() * 0.25) for c in range(3))
    kept, second = data.split(0.5, seed=4, among=rest)
    assert not set(ours[kept]) & set(ours[second])
    assert set(kept) | set(second) == set(rest)
    np.savez(tmp_path / "e.npz", **(arrays | {"groups": arrays["groups"] + 1}))
    assert load_data(tmp_path / "e.npz").fingerprint != data.fingerprint


@pytest.mark.parametrize("groups", [np.zeros(3, np.int64), np.zeros(4), np.zeros((4, 1), np.int64)])
def test_groups_that_fit_no_samples_are_refused(tmp_path: Path, groups: np.ndarray) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 2), np.float32), y=[0, 1, 0, 1], groups=groups)
    with pytest.raises(UsageError, match="groups"):
        load_data(tmp_path / "d.npz")
