"""This machine's processor, as Linux describes it."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_name() -> str:
    """The model name the machine gives."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """Names of the instruction sets and features; none where they are not known."""
    return set(_cpuinfo("flags").split())


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((v.strip() for k, _, v in (line.partition(":") for line in lines) if k.strip() == key), "")
