"""Builds the API documentation from the docstrings: `python docs/build.py -o out-api`, then open out-api/index.html.

Every module that can be imported is a page; a warning is an error, so that what is linked or named exists.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import pkgutil
import sys
import typing
import warnings
from collections.abc import Iterator
from pathlib import Path

import xdeploy

ELSEWHERE = ("xdeploy.kernels",)  # in a folder of its own


def units() -> Iterator[str]:
    """The package and what lies directly in it; pdoc finds the modules below by itself."""
    yield "xdeploy"
    yield from (found.name for found in pkgutil.iter_modules(xdeploy.__path__, "xdeploy."))
    yield from ELSEWHERE


def load(name: str) -> None:
    """Import a unit and all modules below it."""
    module = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(module, "__path__", ()) if name != "xdeploy" else (), f"{name}."):
        importlib.import_module(found.name)


def resolve_inherited_fields() -> None:
    """Give `__init__` of dataclasses its types themselves: their names may be known in a base's module alone."""
    for name, module in list(sys.modules.items()):
        if not name.startswith("xdeploy."):
            continue
        for cls in vars(module).values():
            if inspect.isclass(cls) and dataclasses.is_dataclass(cls) and cls.__module__ == name:
                with contextlib.suppress(NameError):  # of a name for type checkers alone; pdoc finds that itself
                    hints, told = typing.get_type_hints(cls), cls.__init__.__annotations__
                    told.update({k: hints[k] for k in hints.keys() & told.keys()})


def main() -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("out-api"))
    args = parser.parse_args()
    from pdoc import pdoc, render

    vars(xdeploy)["build"] = xdeploy.build  # given on demand otherwise, which only calls see
    names = list(units())
    for name in names:
        load(name)
    resolve_inherited_fields()
    render.configure(docformat="google", search=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc(*names, output_directory=args.output)
    pages = sum(1 for _ in args.output.rglob("*.html")) - 1
    print(f"{pages} modules -> {args.output / 'index.html'}")


if __name__ == "__main__":
    main()
