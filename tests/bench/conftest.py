"""Artifacts of one small network, built once for all tests of the runners."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.networks import residual_network
from xdeploy.builder import build
from xdeploy.handover import Artifact, GoldenIo
from xdeploy.program import bind
from xdeploy.recipe import PackageOptions
from xdeploy.target import load_target

Built = Callable[[str], tuple[Artifact, GoldenIo]]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    graph, golden = residual_network()
    done: dict[str, Artifact] = {}
    folder = tmp_path_factory.mktemp("artifacts")

    def get(name: str) -> tuple[Artifact, GoldenIo]:
        if name not in done:
            target = load_target(name)
            program = bind(graph, target, "net")
            done[name] = build(program, graph, golden, target, folder / name, PackageOptions(), {})
        return done[name], golden

    return get
