"""Shared by all tests: the seed in the header, and where the shared data is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import xdeploy  # noqa: F401  (switches ONNX Runtime's reports off, before a test loads it)
from tests import loopback

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure() -> None:
    loopback.switch_on()


def pytest_report_header() -> str:
    return f"seed {seed()} (set XDEPLOY_TEST_SEED to change); shared data {'present' if SHARED.is_dir() else 'absent'}"


def seed() -> int:
    return int(os.environ.get("XDEPLOY_TEST_SEED", "0"))


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the shared data and models are not beside the project")
    return SHARED
