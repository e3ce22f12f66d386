"""Which output channels can only go together, and their physical removal.

Every channel of every layer is followed back to where it was made: (maker, index), a maker being a convolution, a
linear layer or the input. A sum, difference or product couples its makers, a depthwise convolution follows its input,
a concatenation lines its inputs' channels up, a flattening repeats each channel H * W times.

Removing a channel means what setting its weights and bias to zero means, exactly. So a channel must still be zero where
somebody reads it: a sigmoid makes 1/2 of it, which blocks its removal, unless a product with another channel that
goes as well (a squeeze-and-excitation gate) makes zero of it again.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from xdeploy.errors import PlanError
from xdeploy.model.network import WEIGHTED, Layer, Network

Channel = tuple[str, int] | None  # maker and index; None: a channel of padding zeros


@dataclass(frozen=True, slots=True)
class Consumer:
    """A layer that reads a group: `inputs[c]` are the indices of its input channels or features that hold channel c."""

    layer: str
    inputs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Layers whose output channels are kept or removed together, channel c of one with channel c of all.

    `layers` are weighted layers in execution order: those that make the channels, and depthwise convolutions that
    follow. Where it is not prunable they may differ in size; `channels` is then the first one's.
    """

    layers: tuple[str, ...]
    channels: int
    consumers: tuple[Consumer, ...]
    prunable: bool
    reason: str  # why not; empty if prunable


@dataclass(slots=True)
class _Flow:
    """Where each layer's output channels are from, which makers are coupled, and which must stay whole."""

    channels: dict[str, tuple[Channel, ...]] = field(default_factory=dict)
    parent: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)  # maker -> reason
    followers: dict[str, str] = field(default_factory=dict)  # depthwise layer -> maker
    # layer -> per channel: who gives something else than zero where the channel's maker gives zeros, "" for nobody
    lifted: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def root(self, maker: str) -> str:
        while self.parent[maker] != maker:
            maker = self.parent[maker]
        return maker

    def block(self, channels: Sequence[Channel], reason: str) -> None:
        for maker in {c[0] for c in channels if c is not None}:
            self.blocked.setdefault(maker, reason)

    def make(self, name: str, count: int) -> tuple[Channel, ...]:
        self.parent[name] = name
        return tuple((name, i) for i in range(count))

    def make_blocked(self, layer: Layer, reason: str) -> tuple[Channel, ...]:
        """Channels made anew by a layer without weights, which must stay whole."""
        made = self.make(layer.name, layer.shape[0])
        self.block(made, reason)
        return made


def is_depthwise(network: Network, layer: Layer) -> bool:
    """Whether each output channel reads exactly the input channel of the same index."""
    groups = layer.attrs.get("groups", 1)
    return layer.kind == "conv2d" and groups == layer.shape[0] and groups == network[layer.inputs[0]].shape[0]


def coupled_groups(network: Network) -> tuple[Group, ...]:
    """All groups of the network, in the order of their first layer; every weighted layer is in exactly one."""
    flow = _follow(network)
    members: dict[str, list[str]] = {}
    for layer in network.weighted():
        members.setdefault(flow.root(flow.followers.get(layer.name, layer.name)), []).append(layer.name)
    groups = []
    for root, names in members.items():
        makers = [m for m in flow.parent if flow.root(m) == root]
        reason = next((flow.blocked[m] for m in makers if m in flow.blocked), "")
        consumers = [
            c for x in network.weighted() if x.name not in names and (c := _consumer(network, flow, x, makers))
        ]
        groups.append(Group(tuple(names), network[names[0]].shape[0], tuple(consumers), not reason, reason))
    return tuple(groups)


def _consumer(network: Network, flow: _Flow, layer: Layer, makers: list[str]) -> Consumer | None:
    read = flow.channels[layer.inputs[0]]
    at: dict[int, list[int]] = {}
    for position, channel in enumerate(read):
        if channel is not None and channel[0] in makers:
            at.setdefault(channel[1], []).append(position)
    if not at:
        return None
    count = next(network[m].shape[0] for m in makers)
    return Consumer(layer.name, tuple(tuple(at.get(c, ())) for c in range(count)))


def inputs_from(network: Network) -> dict[str, dict[str, int]]:
    """Weighted layer -> first layer of a group -> how many of its inputs (channels or features) are that group's.

    Depthwise convolutions that follow a group are left out: each of their channels reads one.
    """
    flow = _follow(network)
    found: dict[str, dict[str, int]] = {}
    for layer in network.weighted():
        read = () if layer.name in flow.followers else flow.channels[layer.inputs[0]]
        found[layer.name] = dict(Counter(flow.root(c[0]) for c in read if c is not None))
    first: dict[str, str] = {}
    for layer in network.weighted():
        first.setdefault(flow.root(flow.followers.get(layer.name, layer.name)), layer.name)
    return {n: {first[r]: k for r, k in counts.items() if r in first} for n, counts in found.items()}


# ------------------------------------------------------------------------------------------ following channels
def _follow(network: Network) -> _Flow:
    flow = _Flow()
    for layer in network.layers:
        read = [flow.channels[i] for i in layer.inputs]
        flow.lifted[layer.name] = _lifted(network, flow, layer)
        if layer.kind == "input":
            made = flow.make_blocked(layer, "these are the network's input channels")
        elif layer.kind == "fallback":
            flow.block(read[0], f"{layer.name} is a part in float, which stays as it is")
            made = flow.make_blocked(layer, f"{layer.name} is a part in float, which stays as it is")
        elif layer.kind in WEIGHTED:
            made = _weighted(network, flow, layer, read[0])
        else:
            made = _passed(network, flow, layer, read)
        flow.channels[layer.name] = made
    flow.block(flow.channels[network.output.name], f"{network.output.name} is the network's output")
    return flow


def _weighted(network: Network, flow: _Flow, layer: Layer, read: tuple[Channel, ...]) -> tuple[Channel, ...]:
    if is_depthwise(network, layer):
        makers = {c[0] for c in read if c is not None}
        aligned = len(makers) == 1 and [c and c[1] for c in read] == list(range(len(read)))
        if aligned and network[next(iter(makers))].shape[0] == len(read):
            flow.followers[layer.name] = next(iter(makers))
            return read
        flow.block(read, f"{layer.name} is a depthwise convolution over joined or shifted channels")
    for channel, at in zip(read, flow.lifted[layer.inputs[0]], strict=True):
        if at:
            flow.block([channel], f"{at} gives something else than 0 at 0, which {layer.name} reads")
    made = flow.make(layer.name, layer.shape[0])
    if layer.attrs.get("groups", 1) > 1:
        reason = f"{layer.name} is a convolution in {layer.attrs['groups']} groups of channels"
        flow.block(read, reason)
        flow.block(made, reason)
    return made


def _passed(network: Network, flow: _Flow, layer: Layer, read: list[tuple[Channel, ...]]) -> tuple[Channel, ...]:
    first = read[0]
    if layer.kind in ("add", "sub", "mul"):
        _couple(flow, layer, first, read[1])
        return tuple(a if a is not None else b for a, b in zip(first, read[1], strict=True))
    if layer.kind == "concat":
        return tuple(c for part in read for c in part)
    if layer.kind in ("flatten", "rearrange"):
        source = _sources(network, layer)
        if source is None:
            flow.block(first, f"{layer.name} mixes channels and pixels")
            return flow.make_blocked(layer, f"{layer.name} mixes channels and pixels")
        return tuple(first[i] for i in source)
    if layer.kind == "pad" and any(layer.attrs["channels"]):
        flow.block(first, f"{layer.name} pads channels, which shifts the ones before it")
        before, after = layer.attrs["channels"]
        return (*[None] * before, *first, *[None] * after)
    if layer.kind == "slice":
        cut = first[layer.attrs["starts"][0] : layer.attrs["stops"][0] : layer.attrs["steps"][0]]
        if cut != first:
            flow.block(first, f"{layer.name} selects channels")
        return cut
    if layer.kind == "softmax":
        flow.block(first, f"{layer.name} normalises over channels")
    return first


def _sources(network: Network, layer: Layer) -> tuple[int, ...] | None:
    """The input channel that each output channel (or feature) of a flatten or rearrange layer is; None if mixed.

    A rearrangement can lose channels only where it keeps them as its first axis, in and out, or gives features.
    """
    shape = network[layer.inputs[0]].shape
    pixels = int(np.prod(shape[1:]))
    if layer.kind == "flatten":
        return tuple(c for c in range(shape[0]) for _ in range(pixels))
    view, perm = layer.attrs["view"], layer.attrs["perm"]
    if view[0] != shape[0] or (len(layer.shape) > 1 and (perm[0] != 0 or layer.shape[0] != shape[0])):
        return None
    origin = np.repeat(np.arange(shape[0]), pixels).reshape(view).transpose(perm)
    return tuple(int(c) for c in origin.reshape(layer.shape[0], -1)[:, 0])


def _lifted(network: Network, flow: _Flow, layer: Layer) -> tuple[str, ...]:
    """Per output channel, who gives something else than zero where its maker gives zeros; empty for nobody."""
    read = [flow.lifted[i] for i in layer.inputs]
    if layer.kind in ("input", "fallback", *WEIGHTED):
        return ("",) * layer.shape[0]
    if layer.kind in ("add", "sub"):
        return tuple(a or b for a, b in zip(*read, strict=True))
    if layer.kind == "mul":
        return tuple(a and b for a, b in zip(*read, strict=True))
    if layer.kind == "concat":
        return tuple(at for part in read for at in part)
    if layer.kind == "pad":
        before, after = layer.attrs["channels"]
        return (*[""] * before, *read[0], *[""] * after)
    if layer.kind == "slice":
        return read[0][layer.attrs["starts"][0] : layer.attrs["stops"][0] : layer.attrs["steps"][0]]
    if layer.kind in ("flatten", "rearrange"):
        source = _sources(network, layer)
        return ("",) * layer.shape[0] if source is None else tuple(read[0][i] for i in source)
    what = f"{layer.name} ({layer.attrs.get('function', layer.kind)})"
    return tuple(at or what for at in read[0]) if _of_zero(layer) else read[0]


def _of_zero(layer: Layer) -> bool:
    """Whether a layer gives something else than 0 at 0."""
    a = layer.attrs
    if layer.kind == "clip":
        return not a["low"] <= 0 <= a["high"]
    if layer.kind != "function":
        return False
    return a["function"] in ("sigmoid", "softplus") or (a["function"] == "hard_sigmoid" and a["beta"] > 0)


def _couple(flow: _Flow, layer: Layer, left: tuple[Channel, ...], right: tuple[Channel, ...]) -> None:
    shifted = any(a is None or b is None or a[1] != b[1] for a, b in zip(left, right, strict=True))
    for a, b in zip(left, right, strict=True):
        if a is not None and b is not None:
            flow.parent[flow.root(b[0])] = flow.root(a[0])
    if shifted:
        reason = f"{layer.name} combines channels of different positions"
        flow.block(left, reason)
        flow.block(right, reason)


# ------------------------------------------------------------------------------------------------------ removal
def prune(network: Network, keep: Mapping[str, tuple[int, ...]]) -> Network:
    """The network with only the output channels `keep[layer]` of the layers named; what reads them follows.

    Coupled layers must all be named with the same channels; depthwise convolutions that follow may be left out.

    Raises:
        PlanError: unknown layer, no or unknown channels, a layer that cannot be pruned, coupled layers that differ.
    """
    flow = _follow(network)
    groups = {name: g for g in coupled_groups(network) for name in g.layers}
    for name, channels in keep.items():
        _check_line(network, groups, name, channels)
    removed: set[tuple[str, int]] = set()
    for group in dict.fromkeys(groups.values()):
        kept = _agreed(group, keep, flow)
        if kept is not None:
            gone = set(range(group.channels)) - set(kept)
            removed |= {(n, c) for n in group.layers if n not in flow.followers for c in gone}
    if not removed:
        return network
    left = {n: np.array([c not in removed for c in cs], bool) for n, cs in flow.channels.items()}
    layers = tuple(_cut_layer(network, x, left) for x in network.layers)
    params = {x.name: _cut_params(network, x, left) for x in network.weighted()}
    return Network(layers, params)


def _check_line(network: Network, groups: Mapping[str, Group], name: str, channels: tuple[int, ...]) -> None:
    if name not in groups:
        close = difflib.get_close_matches(name, groups, n=1)
        hint = f"did you mean {close[0]!r}?" if close else None
        raise PlanError(f"{name}: no such convolution or linear layer", hint=hint)
    group, count = groups[name], network[name].shape[0]
    wrong = [c for c in channels if not 0 <= c < count]
    if wrong or not channels or list(channels) != sorted(set(channels)):
        raise PlanError(
            f"{name}: keep must be rising channel numbers in 0..{count - 1}, at least one; got {_some(channels)}"
        )
    if not group.prunable and len(channels) < count:
        raise PlanError(
            f"{name}: its output channels cannot be removed: {group.reason}",
            hint=f"keep all {count} channels of {name}",
        )


def _agreed(group: Group, keep: Mapping[str, tuple[int, ...]], flow: _Flow) -> tuple[int, ...] | None:
    """The channels that all layers of a group keep; None if none is named."""
    if not group.prunable or not any(n in keep for n in group.layers):
        return None
    every = tuple(range(group.channels))
    asked = {n: keep.get(n, every) for n in group.layers if n in keep or n not in flow.followers}
    first = next(iter(asked.values()))
    if all(v == first for v in asked.values()):
        return first
    common = sorted(set.intersection(*(set(v) for v in asked.values())))
    rows = "; ".join(f"{n} keeps {len(v)}: {_some(v)}" for n, v in asked.items())
    hint = f"nearest choice for all of them: {_some(common, 64)}" if common else "they have no channel in common"
    raise PlanError(f"coupled layers must keep the same of their {group.channels} channels; {rows}", hint=hint)


def _some(values: Sequence[int], limit: int = 12) -> str:
    shown = ", ".join(map(str, values[:limit]))
    return f"[{shown}, ...]" if len(values) > limit else f"[{shown}]"


def _cut_layer(network: Network, layer: Layer, left: Mapping[str, NDArray[np.bool_]]) -> Layer:
    count = int(left[layer.name].sum())
    attrs = dict(layer.attrs)
    if layer.kind == "conv2d" and is_depthwise(network, layer):
        attrs["groups"] = count
    if layer.kind == "slice":
        # a slice over all channels stays one; others stand behind layers that keep all
        size = int(left[layer.inputs[0]].sum())
        full = layer.shape[0] == network[layer.inputs[0]].shape[0]
        attrs["stops"] = (size if full else attrs["stops"][0], *attrs["stops"][1:])
    if layer.kind == "rearrange" and attrs["view"][0] == network[layer.inputs[0]].shape[0]:
        # where channels can go, they are the first axis of the view
        attrs["view"] = (int(left[layer.inputs[0]].sum()), *attrs["view"][1:])
    return replace(layer, shape=(count, *layer.shape[1:]), attrs=attrs)


def _cut_params(
    network: Network, layer: Layer, left: Mapping[str, NDArray[np.bool_]]
) -> dict[str, NDArray[np.float32]]:
    weight, bias = (network.params[layer.name][k] for k in ("weight", "bias"))
    rows = left[layer.name]
    weight = weight[rows]
    if layer.attrs.get("groups", 1) == 1:
        weight = weight[:, left[layer.inputs[0]]]
    return {"weight": np.ascontiguousarray(weight), "bias": np.ascontiguousarray(bias[rows])}
