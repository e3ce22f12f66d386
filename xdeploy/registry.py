"""Things found by being there: methods, kernels and targets are discovered by listing their folder once."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from xdeploy.errors import choose_from

T = TypeVar("T")


class Registry(Generic[T]):
    """A name -> entry table filled by the modules of one package, imported on first use."""

    def __init__(self, what: str, package: str) -> None:
        self.what = what
        self.package = package
        self._entries: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters the decorated object under `name`."""

        def enter(entry: T) -> T:
            self.add(name, entry)
            return entry

        return enter

    def add(self, name: str, entry: T) -> None:
        """Enter `entry` under `name`; a second entry of the same name is a bug."""
        if name in self._entries:
            raise ValueError(f"{self.what} {name!r} is registered twice")
        self._entries[name] = entry

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self.package)
        for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
            importlib.import_module(f"{self.package}.{module}")

    def __getitem__(self, name: str) -> T:
        self._load()
        if name not in self._entries:
            raise choose_from(self.what, name, self._entries)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._entries))

    def values(self) -> list[T]:
        """All entries, sorted by name."""
        return [self[name] for name in self]
