"""Many recipes or budgets on several targets as one Optuna study, and the front of those that no other one beats.

    front = sweep("my.nets:net", data="train.zip", target=["cortex-m4"], space={"plan.flash": ["32K", "24K"]})

A trial is a point of the space on one target, run as `xdeploy build` would run it; common stages are worked out once.
The study may be killed and run again at any time, and worked on by several processes and machines.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xdeploy.errors import UsageError
from xdeploy.files import write_json, write_text
from xdeploy.recipe import Recipe
from xdeploy.request import Progress, Silent
from xdeploy.sweep.definition import Definition, define
from xdeploy.sweep.objectives import DEFAULT
from xdeploy.sweep.space import RECIPE, Choice, Space, dimension
from xdeploy.sweep.storage import open_storage, require_optuna, shown_url

__all__ = ["sweep"]


def sweep(
    model: Any = None,
    *,
    data: str | Path | None = None,
    test_data: str | Path | None = None,
    weights: str | Path | None = None,
    target: str | Sequence[str] = "arm",
    space: Mapping[str, Any] | None = None,
    recipes: Mapping[str, Recipe] | None = None,
    objectives: Sequence[str] = DEFAULT,
    sampler: str = "auto",
    trials: int | None = None,
    jobs: int = 1,
    threads: int = 1,
    seed: int = 0,
    storage: str | None = None,
    via: str | Sequence[str] = (),
    remote: bool = False,
    output: str | Path = "sweep",
    again: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run a sweep, or go on with one, and return the content of front.json.

    Args:
        model: as in `xdeploy.build`; a torch module only with one job.
        data: training data.
        test_data: only the front's members are measured on it.
        weights: of a factory's module.
        target: names, families or files.
        space: recipe key -> list of values, or {"low", "high", "step" or "log"}; see `xdeploy.sweep.space`.
        recipes: by name; several are a dimension of the space, one is what the space's keys are changed in.
        objectives: of accuracy (on validation samples), flash, ram, arena, stack, instructions, cycles, latency,
            energy, coded.
        sampler: auto (grid for lists, else tpe up to 100 trials and nsga2 above), grid, tpe, nsga2 or random.
        trials: in all, over all processes; None: the whole grid.
        jobs: processes on this machine.
        threads: of torch in each; part of what trials depend on.
        seed: of the sampler; trials have the seed of their recipes.
        storage: database URL or file; None: study.db in `output`.
        via: boards that time trials, for all targets ("tracker://localhost:9190/pi4", rpc:// or ssh://) or for one
            ("cortex-a72=tracker://localhost:9190/pi4"); outputs must be equal to the reference there too.
        remote: rpc:// and tracker:// may be on another machine, although nothing protects them.
        output: folder of front.json, front.html and the front's run folders.
        again: failed trials are tried once more.
        progress: told a line per trial.

    Raises:
        XdeployError: what is wrong with the input, as for a build; a failed trial is a result and raises nothing.
        TransportError: a board is out of reach; the same call goes on.
    """
    require_optuna()
    recipes = dict(recipes or {"recipe": Recipe()})
    given = {"weights": weights, "data": data, "test_data": test_data}
    definition = define(
        model, {name: None if p is None else Path(p) for name, p in given.items()}, recipes, _space(space, recipes),
        _listed(target), objectives, sampler, trials, seed, threads, _listed(via), remote,
    )  # fmt: skip
    _check_jobs(jobs, threads, trials, model)
    return _sweep(definition, Path(output), storage, trials, jobs, again, progress or Silent(), model)


def _listed(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _space(given: Mapping[str, Any] | None, recipes: Mapping[str, Recipe]) -> Space:
    """The dimensions that were given; several recipes are the first one."""
    dimensions = {key: dimension(key, entry) for key, entry in (given or {}).items()}
    return Space({RECIPE: Choice(tuple(recipes)), **dimensions} if len(recipes) > 1 else dimensions)


def _check_jobs(jobs: int, threads: int, trials: int | None, model: Any) -> None:
    if trials is not None and trials < 1:
        raise UsageError(f"--trials must be at least 1, got {trials}")
    if jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {jobs}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if jobs > 1 and jobs * threads > max(2, cores):
        raise UsageError(
            f"{jobs} jobs of {threads} threads are more than this machine's {cores} cores",
            hint=f"--jobs {max(1, cores // threads)}",
        )
    if jobs > 1 and not isinstance(model, str | None):
        raise UsageError("several jobs need a model that other processes can load", hint="give package.module:factory")


def _sweep(
    definition: Definition, output: Path, storage: str | None, trials: int | None, jobs: int, again: bool,
    progress: Progress, model: Any,
) -> dict[str, Any]:  # fmt: skip
    from xdeploy.store import Store
    from xdeploy.sweep.front import finish
    from xdeploy.sweep.page import render
    from xdeploy.sweep.run import Watcher, run_jobs
    from xdeploy.sweep.shared import locked
    from xdeploy.sweep.study import Study

    definition.boards.check_jobs(jobs)
    Store(output)  # refuses a folder that cannot be written
    _describe(definition, output)
    kept = open_storage(storage, output)
    study = Study(definition, kept, trials)
    study.bury()
    study.top_up(again)
    run_jobs(study, output, storage, jobs, Watcher(study, progress), model)
    with locked(output / "front.lock"):
        front = finish(study.settled(), definition, output, progress, model)
        front["study"]["storage"] = shown_url(storage or "study.db")
        write_json(output / "front.json", front)
        write_text(output / "front.html", render(front))
    return front


def _describe(definition: Definition, output: Path) -> None:
    """Write sweep.json, which working processes read; a folder holds one sweep.

    Raises:
        UsageError: the folder holds another one.
    """
    path = output / "sweep.json"
    if path.exists():
        before = Definition.load(path)
        if before.name != definition.name:
            a, b = before.to_dict(), definition.to_dict()
            other = [k for k in b if a[k] != b[k]]
            told = ", ".join(other) or "the version of xdeploy"
            raise UsageError(
                f"{output} holds another sweep; it differs in {told}", hint="choose another folder with -o"
            )
    definition.save(path)
