"""Arrays in nameless files: the values are those in memory, pages can be given back, and a full disk is told."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest

from xdeploy.errors import UsageError
from xdeploy.files import StorageError
from xdeploy.model import spool
from xdeploy.model.npzfile import read_arrays
from xdeploy.model.spool import Spool, picked, pieces, release, stored


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_rows_in_any_order_and_a_folder_without_names(cache: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (50, 7, 3), np.uint8)
    with Spool(rows.shape, np.uint8) as file:
        for k in np.random.default_rng(1).permutation(50):
            file.write(int(k), rows[k : k + 1])
        array = file.array()
    assert (array == rows).all()
    assert not array.flags.writeable
    assert not list(cache.iterdir())


def test_released_pages_hold_the_same_again() -> None:
    rows = np.arange(3 * 2**20, dtype=np.int64)
    array = stored(rows[::-1], np.int64)
    for _ in range(2):
        assert (array == rows[::-1]).all()
        release(array[5:].reshape(-1, 1))
    assert isinstance(array.base, mmap.mmap)
    release(rows)
    assert rows[7] == 7


def mapped() -> int:
    """Bytes of files that this process holds in memory."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return sum(1024 * int(x.split()[1]) for x in lines if x.startswith(("RssFile", "RssShmem")))


def test_pages_are_given_back() -> None:
    array = stored(np.ones((64, 2**18), np.uint8)[:, ::-1], np.uint8)
    assert int(array.sum()) == array.size == 16 * 2**20
    held = mapped()
    release(array)
    assert mapped() < held - 12 * 2**20


@pytest.mark.parametrize("shape", [(10, 3), (1, 5), (0, 4)])
def test_pieces_are_the_whole(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "PIECE", 40)
    rows = np.random.default_rng(0).random(shape)
    found = list(pieces(rows))
    assert [first for first, _ in found] == list(range(0, shape[0], max(1, 40 // (8 * shape[1]))))
    assert np.array_equal(np.concatenate([rows[:0], *(part for _, part in found)]), rows)


def test_stored_converts_and_lays_out() -> None:
    x = np.random.default_rng(0).random((6, 4, 5)).astype(">f8")
    assert np.array_equal(stored(np.moveaxis(x, 1, -1), np.float32), np.moveaxis(x, 1, -1).astype(np.float32))
    fine = np.zeros((2, 3), np.float32)
    assert stored(fine, np.float32) is fine


def test_no_room_is_told_with_the_bytes_needed(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"needs 12000 bytes") as caught:
        Spool((1000, 3), np.float32)
    assert caught.value.errno == errno.ENOSPC
    assert str(cache) in str(caught.value)


def test_a_limit_on_files_is_told(tmp_path: Path) -> None:
    """The system's own refusal, on the way that a user's data takes."""
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((1000, 1000), np.float32), y=np.arange(1000) % 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StorageError, match=r"needs 4000000 bytes"):
            read_arrays(tmp_path / "d.npz", ("x", "y"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_cache_folder_that_cannot_be_made_is_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDEPLOY_CACHE", str(tmp_path / "file" / "below"))
    assert stored(np.arange(6)[::-1], np.int64).tolist() == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2", "u1", "<U3"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_an_npz(tmp_path: Path, dtype: str, order: str, save: object) -> None:
    x = np.asarray(np.arange(60).reshape(5, 4, 3).astype(dtype), order=order)  # type: ignore[call-overload]
    assert callable(save)
    save(tmp_path / "d.npz", x=x, other=x, y=np.array(7))
    found = read_arrays(tmp_path / "d.npz", ("x", "y", "none"))
    assert sorted(found) == ["x", "y"]
    assert found["x"].dtype == x.dtype
    assert np.array_equal(found["x"], x)
    assert int(found["y"]) == 7


def header(text: str) -> bytes:
    body = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


@pytest.mark.parametrize(
    "content",
    [
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}") + b"1234",
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}") + b"1234",
        header("{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,)}"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + b"\x80\x04K\x01.",
        b"\x93NUMPY\x03\x00" + header("{}")[8:],
        b"\x93NUMPY\x01\x00\xff\xff",
        b"",
    ],
)
def test_arrays_that_lie_reserve_nothing(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: pytest.fail("room was reserved"))
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(UsageError, match=r"d\.npz"):
        read_arrays(tmp_path / "d.npz", ("x",))


@pytest.mark.parametrize("count", [0, 1, 4, 37])
def test_picked_rows(count: int) -> None:
    x = np.random.default_rng(count).integers(0, 256, (50, 3, 5), np.uint8)
    rows = np.random.default_rng(1).integers(0, 50, count)
    for array in (x, stored(x, np.uint8)):
        found = picked(array, rows)
        assert found.dtype == x.dtype
        assert np.array_equal(found, x[rows])
        found[:] = 0  # a copy: augmentation writes into it
    assert np.array_equal(stored(x, np.uint8), x)
