"""The bundled demo: the handwritten digits inside scikit-learn and a small residual CNN trained on the spot.

Digits: 1,797 images of 8x8 pixels in 0..16, scaled to 0..1 (E. Alpaydin, C. Kaynak, UCI 1998). The trained weights are
kept in the user's cache folder; a cache that is damaged or of other code is ignored and written anew.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from xdeploy.caches import cache_root
from xdeploy.errors import ToolchainError
from xdeploy.files import replacing
from xdeploy.formats import Float64
from xdeploy.model import zoo
from xdeploy.model.bars import Progress, stepping
from xdeploy.model.data import DataSet, fingerprint
from xdeploy.model.source import DEMO, SourceModel, assemble
from xdeploy.model.trace import trace
from xdeploy.recipe import DataOptions

EPOCHS, BATCH, PEAK_RATE = 25, 64, 0.01


def demo_data() -> DataSet:
    """The digits as float32 (1797, 1, 8, 8) in 0..1, 10 classes.

    Raises:
        ToolchainError: scikit-learn is not installed.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise ToolchainError("the demo needs scikit-learn", hint="pip install scikit-learn")
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    images, labels = _digits(path) if path.is_file() else _asked_digits()
    x = (images.reshape(-1, 1, 8, 8) / 16.0).astype(np.float32)
    y, classes = labels.astype(np.int64), tuple(map(str, range(10)))
    return DataSet(x, y, classes, True, (), (), fingerprint(x, y, classes), DEMO)


def _digits(path: Path) -> tuple[Float64, Float64]:
    """Pixels (N, 64) and labels (N,) of scikit-learn's file, whose modules take seconds to load for these few rows."""
    with gzip.open(path, "rt", encoding="ascii") as file:
        rows = np.loadtxt(file, delimiter=",")
    return rows[:, :-1], rows[:, -1]


def _asked_digits() -> tuple[Float64, Float64]:
    """The same of a scikit-learn that keeps them elsewhere."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images, labels


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/xdeploy, or ~/.cache/xdeploy."""
    return cache_root() / "xdeploy"


def demo_source(
    seed: int, cache_dir: Path | None = None, *, validation: float = 0.2, progress: Progress | None = None
) -> SourceModel:
    """The demo's trained network and its data; trained in seconds the first time, from the cache after that.

    Args:
        seed: of weights, order and split.
        cache_dir: folder of the weights; None: `cache_folder()`.
        validation: share held out for validation, and as much again for the test.
        progress: told about the training.
    """
    data = demo_data()
    # traced untrained first: the split is fixed before the training that must respect it
    options = DataOptions(validation=validation)
    torch_state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        module = zoo.digits_cnn()
    finally:
        torch.random.set_rng_state(torch_state)
    empty = assemble("digits", trace(module, (1, 8, 8)), data, None, options, seed)
    path = (cache_dir or cache_folder()) / f"digits-{_key(empty)}.safetensors"
    if not _read_cache(module, path):
        _train(module, empty, progress)
        _write_cache(module, path)
    return assemble("digits", trace(module, (1, 8, 8), name="digits"), data, None, options, seed)


def _train(module: nn.Module, source: SourceModel, progress: Progress | None) -> None:
    """AdamW with one cycle, label smoothing and shifts by one pixel."""
    steps = EPOCHS * -(-len(source.train_indices) // BATCH)
    optimizer = torch.optim.AdamW(module.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    rng = np.random.default_rng(source.seed)
    module.train()
    with _one_thread(), stepping("training the demo", EPOCHS, progress) as step:
        for epoch in range(EPOCHS):
            for x, y in source.train_batches(BATCH, epoch=epoch):
                loss = F.cross_entropy(module(_shifted(x, rng)), y, label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
            step(epoch + 1)
    module.eval()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Batches this small are slower on several threads, much slower on a busy machine; and one gives the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _shifted(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """The whole batch moved by up to one pixel."""
    dy, dx = (int(v) for v in rng.integers(0, 3, 2))
    return F.pad(x, (1, 1, 1, 1))[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]]


# ------------------------------------------------------------------------------------------------------ cache
def _key(source: SourceModel) -> str:
    """Changes with data, split, seed, network, recipe of the training and torch."""
    parts = (
        source.fingerprint, source.train_indices.tobytes(), source.seed,
        inspect.getsource(zoo), inspect.getsource(_train), (EPOCHS, BATCH, PEAK_RATE), torch.__version__,
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _state_digest(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _read_cache(module: nn.Module, path: Path) -> bool:
    """Load weights; False if there are none or they are not what was written."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, "pt") as file:
            written = (file.metadata() or {}).get("sha256")
        state = load_file(path)
        if written != _state_digest(state):
            return False
        module.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError, ValueError):
        return False
    module.eval()
    return True


def _write_cache(module: nn.Module, path: Path) -> None:
    """A cache that cannot be written costs time, not the run."""
    from safetensors.torch import save

    state = {k: v.detach().contiguous() for k, v in module.state_dict().items()}
    try:
        with replacing(path) as part:
            part.write_bytes(save(state, metadata={"sha256": _state_digest(state)}))
    except OSError:
        return
