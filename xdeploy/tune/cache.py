"""What was measured before, in the user's cache folder: one JSON file per key, written as a whole or not at all.

Each file holds its own key and a hash of all it says, so that one that was damaged or is another's is measured again.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from xdeploy.caches import own_cache
from xdeploy.files import write_json
from xdeploy.store import digest
from xdeploy.tune.jobs import Figures

SCHEMA = "xdeploy.tuned/1"


def cache_folder() -> Path:
    """$XDEPLOY_CACHE, else xdeploy in $XDG_CACHE_HOME, else ~/.cache/xdeploy; figures lie in `tune` below it."""
    return own_cache() / "tune"


class Cache:
    """Figures by key. A file that is missing, broken or of another schema counts as not measured."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = cache_folder() if folder is None else folder

    def path(self, key: str) -> Path:
        """Where the figures of a key lie."""
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> Figures | None:
        """The figures measured for the key, or None."""
        try:
            value = json.loads(self.path(key).read_text(encoding="utf-8"))
            if not isinstance(value, dict) or (value.get("schema"), value.get("key")) != (SCHEMA, key):
                return None
            if value.pop("sha256", None) != digest(value):
                return None
            return Figures.from_dict(value.get("figures"))
        except (OSError, ValueError, RecursionError):
            return None

    def put(self, key: str, kernel: str, figures: Figures) -> None:
        """Keep the figures, unless the folder cannot be written: then they are measured again next time."""
        value = {"schema": SCHEMA, "key": key, "kernel": kernel, "figures": figures.to_dict()}
        with contextlib.suppress(OSError):
            write_json(self.path(key), {**value, "sha256": digest(value)})
