"""Where the user's caches lie."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """$XDG_CACHE_HOME, to be ignored where it is not absolute by its specification, else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"


def own_cache() -> Path:
    """$XDEPLOY_CACHE, else xdeploy in the root."""
    own = os.environ.get("XDEPLOY_CACHE")
    return Path(own) if own else cache_root() / "xdeploy"
