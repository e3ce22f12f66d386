"""A working process of a sweep: `python -m xdeploy.sweep OUT STORAGE TRIALS PARENT`; it ends when its parent does."""

from __future__ import annotations

import sys
from pathlib import Path

from xdeploy.errors import TransportError
from xdeploy.process.child import end_with
from xdeploy.sweep.definition import Definition
from xdeploy.sweep.storage import open_storage
from xdeploy.sweep.study import Study
from xdeploy.sweep.work import work


def main(output: Path, storage: str, trials: int, parent: int) -> int:
    """Join the sweep that `output` describes and work until it is done."""
    end_with(parent)
    definition = Definition.load(output / "sweep.json")
    study = Study(definition, open_storage(storage or None, output), trials)
    try:
        work(study, output, lambda: None)
    except TransportError as error:
        sys.stderr.write(f"{error.hint or ''}\n{error.message}\n")  # the sweep's own process tells the last line
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
