"""One door to measuring: emulated and counted, or timed where the target is this machine's kind."""

from __future__ import annotations

from collections.abc import Sequence

from xdeploy.errors import DeviceError, ToolchainError
from xdeploy.target import Target
from xdeploy.tune.jobs import Figures, Job


def measure(jobs: Sequence[Job], target: Target) -> list[Figures]:
    """Figures of the jobs, in order.

    Where a batch fails as a whole its jobs are tried one by one; one that fails alone says so in its figures.
    """
    if target.kind == "host":
        from xdeploy.tune.host import measured
    else:
        from xdeploy.tune.batch import measured
    try:
        return measured(jobs, target)
    except (ToolchainError, DeviceError) as error:
        if len(jobs) == 1:
            return [Figures(failure=error.message)]
        return [measure([job], target)[0] for job in jobs]
