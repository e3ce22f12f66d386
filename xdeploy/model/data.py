"""Samples with labels: class folders or zips of images, and npz files; normalised batch by batch."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdeploy.errors import UsageError, not_there
from xdeploy.files import StorageError
from xdeploy.handover import laid_out
from xdeploy.model.bars import Progress
from xdeploy.model.decoding import decode
from xdeploy.model.images import list_folder, list_zip
from xdeploy.model.npzfile import read_arrays
from xdeploy.model.spool import picked, pieces, stored

Int64 = NDArray[np.int64]
_X, _Y = ("x", "inputs", "images"), ("y", "labels", "targets")
_MAX_CLASSES = 65536
_PAD = 4  # pixels of random crops


@dataclass(frozen=True, slots=True)
class DataSet:
    """Samples, which `load_data` leaves in a mapped file and not in memory, and labels.

    `samples` is uint8 images (N, H, W, C), which become (pixel / 255 - mean) / std, or float32 as the model takes
    them, (N, C, H, W) or (N, F). `named`: the classes have names, so that their number is known exactly. mean and std
    have one entry per channel, or none.
    """

    samples: NDArray[Any]
    labels: Int64
    classes: tuple[str, ...]
    named: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str  # sha256 of samples, labels and class names
    path: str
    groups: Int64 | None = None  # (N,): samples of one group, such as versions of one recording, are never parted

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample as the model takes it: (C, H, W) or (F,)."""
        s = self.samples.shape[1:]
        return (s[2], s[0], s[1]) if self.samples.dtype == np.uint8 else tuple(s)

    def fitted(self, shape: tuple[int, ...]) -> DataSet:
        """The same data laid out as a network of this input shape takes it, (C, H, W) or (F,), as far as it fits."""
        found = None if self.shape == shape or self.samples.dtype == np.uint8 else laid_out(self.samples, shape)
        if found is None:
            return self
        found = stored(found, found.dtype)
        return replace(self, samples=found, fingerprint=fingerprint(found, self.labels, self.classes, self.groups))

    def inputs(self, raw: NDArray[Any]) -> Tensor:
        """Model inputs, float32 (N, C, H, W) or (N, F), of raw samples."""
        if raw.dtype != np.uint8:
            return torch.from_numpy(np.require(raw, np.float32, ("C", "W")))
        x = torch.from_numpy(np.require(raw.transpose(0, 3, 1, 2), np.uint8, ("C", "W"))).float().div_(255.0)
        if self.mean:
            mean, std = (torch.tensor(v, dtype=torch.float32).reshape(1, -1, 1, 1) for v in (self.mean, self.std))
            x = x.sub_(mean).div_(std)
        return x

    def batches(
        self, indices: Int64, size: int, augment: np.random.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Model inputs float32 and labels int64 of the samples `indices`, in that order, `size` at a time.

        `augment`: images are cropped at random after padding by 4 pixels, and flipped sideways at random.
        """
        for start in range(0, len(indices), size):
            chosen = indices[start : start + size]
            raw = picked(self.samples, chosen)
            if augment is not None and raw.ndim == 4:
                raw = _augment(raw, augment, self.samples.dtype == np.uint8)
            yield self.inputs(raw), torch.from_numpy(self.labels[chosen])

    def split(self, share: float, seed: int, among: Int64 | None = None) -> tuple[Int64, Int64]:
        """Part the samples (or those `among` them) at random, the same share of each class: (rest, share), sorted.

        Every class with two samples or more is on both sides, unless the share is 0. Groups go as a whole, with the
        class of their first sample.
        """
        among = np.arange(len(self), dtype=np.int64) if among is None else among
        if self.groups is not None:
            names, first = np.unique(self.groups[among], return_index=True)
            whole = replace(self, labels=self.labels[among[first]], groups=None)
            _, chosen = whole.split(share, seed, np.arange(len(names), dtype=np.int64))
            part = among[np.isin(self.groups[among], names[chosen])]
            return np.setdiff1d(among, part), part
        rng = np.random.default_rng(seed)
        taken = []
        for label in range(len(self.classes)):
            members = among[self.labels[among] == label]
            count = round(len(members) * share)
            if share > 0 and len(members) > 1:
                count = min(max(count, 1), len(members) - 1)
            taken.append(rng.permutation(members)[:count])
        part = np.sort(np.concatenate(taken))
        return np.setdiff1d(among, part), part


def load_data(
    path: Path,
    *,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    channels: int | None = None,
    shape: tuple[int, ...] | None = None,
    progress: Progress | None = None,
) -> DataSet:
    """Read a folder or zip of class folders (jpg, png, bmp), or an npz with `x` and `y`.

    Classes are numbered in alphabetical order. An npz may say in `groups` which samples must not be parted by a split.
    It holds float32 x as the model takes it, used as it is, or uint8
    images (N, H, W, C) or (N, H, W), and integer y; `classes` may hold their names. mean and std apply to images:
    pixels are 0..1 before them, so a model that takes 0..255 wants mean 0 and std 0.00392156862745098 (1 / 255).

    Args:
        path: folder, .zip or .npz.
        mean: per channel, of pixels in 0..1.
        std: per channel, > 0.
        channels: 1 or 3 to decode images to grey or RGB; None: grey if all files are.
        shape: of the model's input, (C, H, W) or (F,), to lay an npz's x out by (see `handover.laid_out`); None: as it
            is.
        progress: told about decoding of more than 2000 images.

    Raises:
        UsageError: anything unreadable, broken, inconsistent or unsafe, by name. StorageError: no room for the decoded
            samples.
    """
    if not path.exists():
        raise not_there(path, "data")
    if path.is_dir():
        files = list_folder(path)
        return _image_set(path, decode(files, channels, progress), files.labels, files.classes, mean, std)
    if path.suffix.lower() == ".npz":
        return _from_npz(path, mean, std, shape)
    if path.suffix.lower() != ".zip":
        raise UsageError(f"data {path} is not supported", hint="give a folder or .zip of class folders, or a .npz")
    try:
        with zipfile.ZipFile(path) as archive:
            files = list_zip(path, archive)
            samples = decode(files, channels, progress)
    except StorageError:
        raise
    except (zipfile.BadZipFile, OSError, RuntimeError) as error:
        raise UsageError(f"data {path} is not a readable zip: {error}") from None
    return _image_set(path, samples, files.labels, files.classes, mean, std)


def check_classes(data: DataSet, outputs: int) -> None:
    """The data's classes must fit the model's outputs; an npz without names may hold fewer.

    Raises:
        UsageError: they do not.
    """
    count = len(data.classes)
    if count > outputs or (data.named and count != outputs):
        raise UsageError(
            f"the model has {outputs} outputs, but {data.path} holds {count} classes ({_some(data.classes)})",
            hint="use the data the model was trained for, or a model with as many outputs",
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _image_set(
    path: Path,
    samples: NDArray[np.uint8],
    labels: Int64,
    classes: tuple[str, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    named: bool = True,
) -> DataSet:
    depth = samples.shape[3]
    if bool(mean) != bool(std):
        raise UsageError("data.mean and data.std belong together; give both or neither")
    if any(len(v) not in (0, 1, depth) for v in (mean, std)) or len(mean) != len(std):
        raise UsageError(f"data.mean and data.std need {depth} values for {path}, got {len(mean)} and {len(std)}")
    if not all(np.isfinite(v) for v in (*mean, *std)) or any(s <= 0 for s in std):
        raise UsageError(f"data.mean must be finite and data.std > 0, got {mean} and {std}")
    if len(mean) == 1:
        mean, std = mean * depth, std * depth
    return DataSet(samples, labels, classes, named, mean, std, fingerprint(samples, labels, classes), str(path))


def fingerprint(samples: NDArray[Any], labels: Int64, classes: tuple[str, ...], groups: Int64 | None = None) -> str:
    """Hash of samples, labels, class names and groups."""
    digest = hashlib.sha256(repr((samples.shape, str(samples.dtype), classes)).encode())
    for _, rows in pieces(samples):
        digest.update(np.ascontiguousarray(rows).data)
    digest.update(np.ascontiguousarray(labels).data)
    if groups is not None:
        digest.update(np.ascontiguousarray(groups).data)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------- npz
def _from_npz(path: Path, mean: tuple[float, ...], std: tuple[float, ...], shape: tuple[int, ...] | None) -> DataSet:
    arrays = read_arrays(path, (*_X, *_Y, "classes", "groups"))
    x = _one_of(path, arrays, _X)
    labels = _labels(path, _one_of(path, arrays, _Y), len(x) if x.ndim else 0)
    classes, named = tuple(map(str, range(int(labels.max()) + 1))), "classes" in arrays
    if named:
        classes = _names(path, arrays["classes"])
        if len(classes) <= labels.max():
            raise UsageError(f"{path}: y goes up to {labels.max()}, but there are {len(classes)} names in 'classes'")
    if len(classes) < 2:
        raise UsageError(f"{path} holds one class only; at least two are needed")
    groups = _groups(path, arrays["groups"], len(labels)) if "groups" in arrays else None
    if x.dtype == np.uint8:
        images = _image_set(path, _pixels(path, x, shape), labels, classes, mean, std, named)
        return replace(images, groups=groups, fingerprint=fingerprint(images.samples, labels, classes, groups))
    if x.dtype.kind == "f" and shape is not None:
        x = _floats(path, x, shape)
    elif x.dtype.kind != "f" or x.ndim not in (2, 3, 4):
        raise UsageError(
            f"{path}: x is {x.dtype} {x.shape}; expected float (N, C, H, W), (N, C, L) or (N, F), or uint8 (N, H, W, C)"
        )
    x = stored(x, np.float32)
    for start, rows in pieces(x):
        if not np.isfinite(rows).all():
            first = start + int(np.argwhere(~np.isfinite(rows))[0][0])
            raise UsageError(f"{path}: x holds NaN or infinity, first in sample {first}", hint="leave such samples out")
    return DataSet(x, labels, classes, named, (), (), fingerprint(x, labels, classes, groups), str(path), groups)


def _pixels(path: Path, x: NDArray[Any], shape: tuple[int, ...] | None) -> NDArray[Any]:
    """Images as (N, H, W, C)."""
    if shape is not None and len(shape) == 3 and x.shape[1:] == shape and x.shape[3] > 4:
        x = np.moveaxis(x, 1, -1)  # channels first, as the model has them
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[3] > 4:
        raise UsageError(f"{path}: uint8 x has shape {x.shape}; expected (N, H, W) or (N, H, W, C) with C <= 4")
    return stored(x, np.uint8)


def _floats(path: Path, x: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Samples laid out as the model takes them."""
    found = laid_out(x, shape)
    if found is None:
        raise UsageError(
            f"{path}: x holds samples of {x.shape[1:]}, but the model takes {shape}",
            hint="scale the samples to the model's input size, or export the model for this size",
        )
    return found


def _names(path: Path, names: NDArray[Any]) -> tuple[str, ...]:
    if names.ndim != 1 or len(names) > _MAX_CLASSES:
        raise UsageError(f"{path}: classes is {names.dtype} {names.shape}; expected up to {_MAX_CLASSES} names (K,)")
    return tuple(map(str, names.tolist()))


def _one_of(path: Path, arrays: dict[str, NDArray[Any]], names: tuple[str, ...]) -> NDArray[Any]:
    found = [n for n in names if n in arrays]
    if len(found) != 1:
        told = f"{path}: expected exactly one of the arrays {', '.join(names)}; found {', '.join(found) or 'none'}"
        raise UsageError(told, hint="save them with np.savez(path, x=samples, y=labels)")
    return arrays[found[0]]


def _labels(path: Path, y: NDArray[Any], count: int) -> Int64:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "iu":
        hint = "one-hot labels become classes with y.argmax(1)" if y.ndim == 2 else "labels are class numbers from 0"
        raise UsageError(f"{path}: y is {y.dtype} {y.shape}; expected integers (N,)", hint=hint)
    if len(y) != count or not count:
        raise UsageError(f"{path}: x holds {count} samples, y {len(y)} labels")
    if int(y.min()) < 0 or int(y.max()) >= _MAX_CLASSES:
        raise UsageError(f"{path}: labels must be in 0..{_MAX_CLASSES - 1}, got {y.min()}..{y.max()}")
    return y.astype(np.int64)


def _groups(path: Path, groups: NDArray[Any], count: int) -> Int64:
    if groups.shape != (count,) or groups.dtype.kind not in "iu":
        raise UsageError(f"{path}: groups is {groups.dtype} {groups.shape}; expected integers ({count},)")
    found: Int64 = groups.astype(np.int64)
    return found


def _augment(raw: NDArray[Any], rng: np.random.Generator, channels_last: bool) -> NDArray[Any]:
    """Random crop of the zero-padded images and random sideways flip, whole batch at once."""
    x = raw if channels_last else raw.transpose(0, 2, 3, 1)
    n, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (_PAD, _PAD), (_PAD, _PAD), (0, 0)))
    rows = rng.integers(0, 2 * _PAD + 1, (n, 1)) + np.arange(height)
    columns = rng.integers(0, 2 * _PAD + 1, (n, 1)) + np.arange(width)
    flip = rng.random(n) < 0.5
    columns[flip] = columns[flip][:, ::-1]
    out: NDArray[Any] = padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return out if channels_last else out.transpose(0, 3, 1, 2)
