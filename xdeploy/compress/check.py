"""Does a plan fit a network? Every line that cannot be honoured is refused by name before anything is changed."""

from __future__ import annotations

import difflib

from xdeploy.compress.zeros import order_of
from xdeploy.errors import PlanError, UsageError
from xdeploy.formats import weight_format
from xdeploy.handover import CompressionPlan, PlanLine
from xdeploy.model.network import Network


def check_plan(network: Network, plan: CompressionPlan) -> None:
    """Refuse a plan that does not fit.

    Raises:
        PlanError: a line names no weighted layer, names it twice, lacks one, asks for an unknown weight format, for
            activations other than int8, has a density outside 0..1, or keeps channels that do not exist (or none).
    """
    allowed = [x.name for x in network.weighted()]
    seen: set[str] = set()
    for i, line in enumerate(plan.layers):
        where = f"plan line {i} ({line.origin})"
        if line.origin not in allowed:
            close = difflib.get_close_matches(line.origin, allowed, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"weighted layers: {', '.join(allowed)}"
            raise PlanError(f"{where}: the network has no conv2d or linear layer of this name", hint=hint)
        if line.origin in seen:
            raise PlanError(f"{where}: this layer has two lines", hint="keep one of them")
        seen.add(line.origin)
        _check_line(network, line, where)
    missing = [name for name in allowed if name not in seen]
    if missing:
        raise PlanError(f"the plan has no line for {', '.join(missing)}", hint="every weighted layer needs one")


def _check_line(network: Network, line: PlanLine, where: str) -> None:
    try:
        weight_format(line.weight_format)
    except UsageError as error:
        raise PlanError(f"{where}: {error.message}", hint=error.hint) from None
    if line.activation_format != "int8":
        raise PlanError(
            f"{where}: activation format {line.activation_format!r} has no integer kernels; allowed: int8",
            hint="set activation_format to int8",
        )
    density = line.density
    if density is not None and (type(density) not in (int, float) or not 0 <= density <= 1):
        raise PlanError(
            f"{where}: density must be the share of weights that are not zero, in 0..1; got {density!r}",
            hint="null leaves the zeros to the format",
        )
    if line.zeros is not None:
        order_of(line)
        if density is None:
            raise PlanError(f"{where}: zeros = {line.zeros!r} without a density", hint="give the line a density too")
    if line.keep is None:
        return
    channels = len(network.params[line.origin]["weight"])
    if not line.keep or list(line.keep) != sorted(set(line.keep)) or line.keep[0] < 0 or line.keep[-1] >= channels:
        raise PlanError(
            f"{where}: keep must list at least one output channel, ascending, each once, in 0..{channels - 1}; "
            f"got {list(line.keep)[:8]}{'...' if len(line.keep) > 8 else ''}",
            hint="null keeps all channels",
        )
