"""One folder of small files and a finished run under the names of README, copied for each of its blocks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.readme import standin
from tests.readme.reading import ROOT, real_build
from tests.readme.typing_in import type_in
from tests.threads import one_thread as one_thread
from xdeploy.model import zoo


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    standin.make(folder)
    return folder


@pytest.fixture(autouse=True)
def _small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """xdeploy.model.zoo:resnet20 is a network of two convolutions here."""
    monkeypatch.setattr(zoo, "resnet20", standin.Small)


@pytest.fixture
def workspace(inputs: Path, tmp_path: Path) -> Path:
    """A clone's folder with a reader's files in it."""
    for path in inputs.iterdir():
        shutil.copy(path, tmp_path)
    for name in ("examples", "benchmarks", "targets", "constraints.txt", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.fixture(scope="session")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`out` as README's build of a real model leaves it, by that very command."""
    folder = tmp_path_factory.mktemp("finished")
    for path in inputs.iterdir():
        shutil.copy(path, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "resnet20", standin.Small)
        type_in(real_build(), folder)
    return folder / "out"


@pytest.fixture
def with_run(workspace: Path, request: pytest.FixtureRequest) -> Callable[[], Path]:
    """Puts that run into the workspace, as `out` and as the earlier build `before`."""

    def put() -> Path:
        made = request.getfixturevalue("finished")
        for name in ("out", "before"):
            shutil.copytree(made, workspace / name, symlinks=True)
        return workspace

    return put
