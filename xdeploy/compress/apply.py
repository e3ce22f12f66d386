"""`compress`: the plan is applied to the network, and what leaves here is final integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

from torch import Tensor

from xdeploy.compress.calibrate import calibrate
from xdeploy.compress.check import check_plan
from xdeploy.compress.checkpoint import Checkpoint
from xdeploy.compress.compact import PLAIN, Rules
from xdeploy.compress.ecq import Rescore, constraint_of
from xdeploy.compress.fakequant import FakeQuantModule
from xdeploy.compress.integer import quantise_layer
from xdeploy.compress.model import CompressedModel, QuantisedWeight
from xdeploy.compress.normalise import Moments, moments
from xdeploy.compress.prune import kept_channels, prune_network, prune_relevance
from xdeploy.compress.reconstruct import SAMPLES, TRIAL_SAMPLES, gains, reconstruct
from xdeploy.compress.recover import Constrain, Setting, assign_once, fine_tune
from xdeploy.compress.restore import behind, restore
from xdeploy.compress.steps import steps_of
from xdeploy.compress.zeros import masks, with_zeros
from xdeploy.errors import UsageError
from xdeploy.formats import Float64, QParams
from xdeploy.handover import CompressionPlan, IoSpec, RelevanceMap
from xdeploy.model.network import Network
from xdeploy.model.top1 import accuracy
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.quantise import importance
from xdeploy.recipe import CompressOptions, EcqOptions, RecoverOptions

TRIAL_BATCHES = 4  # of calibration inputs that codes and moments are taken of while a plan is tried
Inputs = Callable[[], Iterable[Tensor]]  # fresh batches (N, *input shape) at every call
Train = Callable[[int], Iterable[tuple[Tensor, Tensor]]]  # the batches of epoch 0, 1, ..., shuffled and augmented
Labelled = Callable[[], Iterable[tuple[Tensor, Tensor]]]  # fresh batches of inputs and class numbers (N,)
Progress = Callable[[str, int, int], None]  # what, done, total (0: unknown)


@dataclass(slots=True)
class Memory:
    """What the plans of one network have in common, so that a search over plans does it once.

    Activation parameters, moments, and each layer's integers in each format, by (layer, format). It belongs to one
    network, one relevance map, one set of calibration data and options; where a plan removes channels only moments are
    taken from it. What else makes a layer's integers (density, order of zeros, rules) is in the second part of its key.
    """

    network: Network
    activations: dict[str, QParams] = field(default_factory=dict)
    weights: dict[tuple[str, str], QuantisedWeight] = field(default_factory=dict)
    moments: Moments | None = None


def compress(
    network: Network,
    plan: CompressionPlan,
    relevance: RelevanceMap | None,
    io: IoSpec,
    calibration: Inputs,
    train: Train | None,
    validation: Labelled | None,
    options: CompressOptions,
    recover: RecoverOptions,
    seed: int,
    rescore: Rescore | None = None,
    progress: Progress | None = None,
    measure_steps: bool = True,
    memory: Memory | None = None,
    ecq: EcqOptions | None = None,
    checkpoint: Checkpoint | None = None,
    train_steps: int | None = None,
) -> CompressedModel:
    """Apply a plan: prune, calibrate, quantise, and fine-tune if asked.

    Args:
        network: the float network, BatchNorm folded; not changed.
        plan: one line per weighted layer.
        relevance: scores of `network`; their sensitivity weighs the weights' errors. None: all weigh the same.
        io: input and output of the model; its codes are filled in.
        calibration: gives batches of inputs that set the activation ranges, and the statistics of fine-tuning's
            BatchNorm.
        train: epoch number -> labelled batches to fine-tune with; only needed for recover.epochs > 0.
        validation: gives labelled batches to measure and select with; None: accuracies are not measured.
        options: how codes are found.
        recover: how to fine-tune.
        seed: of everything random in fine-tuning.
        rescore: scores a network anew with a numbered draw of samples; used after channels were removed and by ECQx.
            None: the old scores of what is left.
        progress: told (what, done, total) along the way.
        measure_steps: whether validation accuracy is taken before and after each step. Without, this is a trial of a
            plan, and codes and moments are taken of fewer samples.
        ecq: how codes are assigned in layers whose plan line has a density; None: by nearness, the plan's zeros pruned.
        checkpoint: where the state of fine-tuning is kept after every epoch, and found again; None: nowhere.
        train_steps: batches in an epoch; None: they are counted.
        memory: of earlier calls with the same network, relevance, data and options; filled. None: nothing is kept.

    Returns:
        The compressed model: same inputs and same process give the same bytes.

    Raises:
        PlanError: the plan does not fit the network. UsageError: data are missing. UnsupportedError: a layer does not
        fit into int32.
    """
    _check(network, plan, recover, train)
    log = StepLog(validation if measure_steps else None, progress)
    log.start(NetworkModule(network).eval(), 4 * network.parameters())
    pruned, relevance = _pruned(network, plan, relevance, rescore, log)
    rules = rules_of(plan, options, ecq)
    steps = steps_of(plan, options, recover, ecq)
    norms = _norms(network, plan, calibration, memory) if steps.needs_moments else None
    ranges = pruned if norms is None else network  # of what outputs will be like
    model = quantise(pruned, plan, relevance, io, calibration, options, progress, memory, rules, ranges)
    log.step("quantise", FakeQuantModule(model), packed_bytes(model))
    inputs = calibration if measure_steps else lambda: islice(calibration(), TRIAL_BATCHES)
    zeros = masks(pruned, plan, relevance)
    standing = zeros if steps.reconstruct else {}
    if steps.reconstruct and gains(model, zeros):
        model = reconstruct(model, inputs(), rules, zeros, SAMPLES if measure_steps else TRIAL_SAMPLES)
        log.step("reconstruct", FakeQuantModule(model), packed_bytes(model))
    constrain = partial(constraint_of, options=steps.ecq, rescore=rescore, relevance=relevance, standing=standing)
    if recover.epochs > 0 and train is not None:
        if norms is not None and steps.restore:
            model = behind(restore(model, norms, calibration(), rules), model)
            log.step("restore", FakeQuantModule(model), packed_bytes(model))
        setting = Setting(constrain, rules, network, checkpoint, train_steps, calibration, norms)
        told = replace(recover, batchnorm=steps.batchnorm)
        model = fine_tune(model, train, validation, told, seed, progress, setting)
        log.step("recover", FakeQuantModule(model), packed_bytes(model))
    else:
        assigned = ecq is not None and ecq.method != "off"
        model = _untrained(model, constrain if assigned else None, norms, inputs, rules, log)
    return replace(model, steps=tuple(log.steps))


def _untrained(
    model: CompressedModel,
    constrain: Constrain | None,
    norms: Moments | None,
    calibration: Inputs,
    rules: Rules,
    log: StepLog,
) -> CompressedModel:
    """What becomes of a quantised model without fine-tuning: its codes assigned, its outputs' moments given back."""
    if constrain is not None:
        model = assign_once(model, constrain, rules)
        log.step("assign", FakeQuantModule(model), packed_bytes(model))
    if norms is not None:
        model = restore(model, norms, calibration(), rules)
        log.step("restore", FakeQuantModule(model), packed_bytes(model))
    return model


def _norms(network: Network, plan: CompressionPlan, calibration: Inputs, memory: Memory | None) -> Moments:
    """Moments of the float network's outputs, of the channels that the plan keeps."""
    known = memory if memory is not None and memory.network is network else Memory(network)
    if known.moments is None:
        known.moments = moments(network, calibration())
    keep = {name: list(channels) for name, channels in kept_channels(plan).items()}
    return {
        name: (mean[keep[name]], deviation[keep[name]]) if name in keep else (mean, deviation)
        for name, (mean, deviation) in known.moments.items()
    }


def _check(network: Network, plan: CompressionPlan, recover: RecoverOptions, train: Train | None) -> None:
    check_plan(network, plan)
    if recover.epochs > 0 and train is None:
        raise UsageError("recover.epochs > 0 needs training data", hint="set recover.epochs = 0 or give --data")


def _pruned(
    network: Network, plan: CompressionPlan, relevance: RelevanceMap | None, rescore: Rescore | None, log: StepLog
) -> tuple[Network, RelevanceMap | None]:
    """The network without the channels that go, and scores of what is left."""
    pruned = prune_network(network, plan)
    if not kept_channels(plan):
        return pruned, relevance
    log.step("prune", NetworkModule(pruned).eval(), 4 * pruned.parameters())
    if relevance is None:
        return pruned, None
    return pruned, rescore(pruned, 0) if rescore is not None else prune_relevance(network, relevance, plan)


def rules_of(plan: CompressionPlan, options: CompressOptions, ecq: EcqOptions | None) -> Rules:
    """What all layers' integers keep to: compact ones where asked for, or where the plan or ECQ makes zeros."""
    sparse = (ecq is not None and ecq.method != "off") or plan.sparse
    return Rules(compact=sparse if options.compact is None else options.compact, tensor=options.scale == "tensor")


def quantise(
    network: Network,
    plan: CompressionPlan,
    relevance: RelevanceMap | None,
    io: IoSpec,
    calibration: Inputs,
    options: CompressOptions,
    progress: Progress | None = None,
    memory: Memory | None = None,
    rules: Rules = PLAIN,
    ranges: Network | None = None,
) -> CompressedModel:
    """Calibrate activations and quantise every layer's weights as the plan says; no training, no measuring.

    The plan's zeros are set before scales and codebooks are fitted to the rest; the model's network keeps its weights.
    `ranges`: the network that activations are calibrated on, of the same layers; None: `network`.
    """
    tell = None if progress is None else lambda done, total: progress("calibrate", done, total)
    known = memory if memory is not None and memory.network is network else Memory(network)
    if not known.activations:
        known.activations.update(calibrate(ranges or network, calibration(), options.activation_percentile, tell))
    activations = dict(known.activations)
    importances = layer_importance(network, relevance, options)
    sparse = with_zeros(network, masks(network, plan, relevance))
    weights = quantise_weights(sparse, plan, activations, importances, progress, known.weights, rules)
    filled = replace(
        io, input_q=activations[network.input.name], output_q=activations[network.output.name],
        input_shape=network.input.shape, output_shape=network.output.shape,
    )  # fmt: skip
    return CompressedModel(network, weights, activations, filled, plan, ())


def quantise_weights(
    network: Network,
    plan: CompressionPlan,
    activations: Mapping[str, QParams],
    weighting: Mapping[str, Float64 | None],
    progress: Progress | None = None,
    known: dict[tuple[str, str], QuantisedWeight] | None = None,
    rules: Rules = PLAIN,
) -> dict[str, QuantisedWeight]:
    """Final integer weights of every weighted layer, in execution order; `known` ones are taken, new ones entered."""
    known = {} if known is None else known
    layers = network.weighted()
    result: dict[str, QuantisedWeight] = {}
    for k, layer in enumerate(layers, 1):
        name = layer.name
        p, out = network.params[name], activations[network.quantised(name)]
        line = plan[name]
        own = replace(rules, zero=line.density is not None)
        fmt = line.weight_format
        special = own != PLAIN
        key = name, f"{fmt} {line.density} {line.zeros} {own.compact} {own.tensor}" if special else fmt
        if key not in known:
            source = activations[layer.inputs[0]]
            known[key] = quantise_layer(name, p["weight"], p["bias"], fmt, source, out, weighting[name], own)
        result[name] = known[key]
        if progress is not None:
            progress("quantise", k, len(layers))
    return result


def layer_importance(
    network: Network, relevance: RelevanceMap | None, options: CompressOptions
) -> dict[str, Float64 | None]:
    """How much each weight's error counts, by layer (None: all alike).

    Raises:
        UsageError: the relevance map belongs to another network.
    """
    result: dict[str, Float64 | None] = {}
    for layer in network.weighted():
        found = None if relevance is None else relevance.sensitivity.get(layer.name)
        shape = network.params[layer.name]["weight"].shape
        if relevance is not None and (found is None or found.shape != shape):
            raise UsageError(
                f"{layer.name}: the relevance map has {'no scores' if found is None else f'shape {found.shape}'}, "
                f"the layer's weight has shape {shape}",
                hint="score this network again",
            )
        result[layer.name] = importance(found, options.codebook_weighting)
    return result


def packed_bytes(model: CompressedModel) -> int:
    """Bytes of a compressed model's weights on the device, everything counted but alignment."""
    return sum(w.packed_bytes for w in model.weights.values())


class StepLog:
    """Validation accuracy and bytes of the parameters before and after each step; empty without validation data."""

    def __init__(self, validation: Labelled | None, progress: Progress | None) -> None:
        self.validation, self.progress = validation, progress
        self.steps: list[dict[str, Any]] = []
        self._last, self._size = 0.0, 0

    def _measure(self, module: NetworkModule | FakeQuantModule) -> tuple[float, int]:
        return (0.0, 0) if self.validation is None else accuracy(module, self.validation())

    def start(self, module: NetworkModule, size: int) -> None:
        """Measure the network, of `size` bytes, before the first step."""
        self._last, _ = self._measure(module)
        self._size = size

    def step(self, name: str, module: NetworkModule | FakeQuantModule, size: int) -> None:
        """Measure after a step that left `size` bytes, and record it."""
        if self.progress is not None:
            self.progress(name, 1, 1)
        after, n = self._measure(module)
        if n:
            row = {"step": name, "accuracy_before": self._last, "accuracy_after": after, "n": n}
            self.steps.append({**row, "bytes_before": self._size, "bytes_after": size})
        self._last, self._size = after, size
