"""One process's share of a sweep: takes slots, runs them, tells the study, until nothing is left to do."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xdeploy.errors import GateError, TransportError, XdeployError
from xdeploy.files import sha256, write_text
from xdeploy.sweep.objectives import measured
from xdeploy.sweep.samplers import Sampled
from xdeploy.sweep.shared import run_shared
from xdeploy.sweep.study import Study

POLL = 1.0  # seconds between two looks at what other processes do


def trial_folder(output: Path, position: int) -> Path:
    """Where a trial's run lies."""
    return output / "trials" / f"{position:04}"


def work(study: Study, output: Path, tell: Callable[[], None], model: Any = None) -> None:
    """Run trials until every position has a result.

    Args:
        study: joined.
        output: of the sweep; trials' run folders, common stages and what boards told lie in it.
        tell: called after each trial, and while others are waited for.
        model: a torch module, where the definition has only its name.

    Raises:
        TransportError: a board, or who lends it, is out of reach; the trial is free again.
    """
    while True:
        taken = study.take()
        if taken is not None:
            try:
                with study.alive(taken):
                    _run(study, taken, output, model)
            except BaseException:  # an interrupt, or no board: this process may live on, so nobody would find it dead
                study.release(taken)
                raise
            tell()
            continue
        study.bury()
        if len(study.settled()) >= study.wanted:
            return
        study.top_up()
        tell()
        time.sleep(POLL)


def _run(study: Study, taken: Sampled, output: Path, model: Any) -> None:
    """One trial; whatever goes wrong with it is its result, but not that boards are out of reach."""
    definition, began = study.definition, time.monotonic()
    folder = trial_folder(output, taken.position)
    try:
        request = definition.request(taken.options, taken.target, folder, model)
        run_shared(request, output / "stages")
        target, keep = Path(taken.target).stem, output / "boards" / f"{taken.position:04}.json"
        board = definition.boards.measure(folder / target, target, request.recipe.bench.repeats, keep)
        found = measured(folder, target, definition.objectives, board)
        attributes = {
            "quantities": found, "seconds": round(time.monotonic() - began, 3),
            "sha256": sha256(folder / "compressed.safetensors"),
        }  # fmt: skip
        study.complete(taken, [float(found[o.name]["value"]) for o in definition.objectives], attributes)
    except GateError as error:
        study.prune(taken, str(error))
    except TransportError:
        raise
    except XdeployError as error:
        study.fail(taken, str(error))
    except Exception as error:
        write_text(output / "errors" / f"{taken.position:04}.txt", traceback.format_exc())
        study.fail(taken, f"internal error: {type(error).__name__}: {error} (errors/{taken.position:04}.txt)")
