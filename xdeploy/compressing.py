"""The compress stage: a plan, the source's data and the recipe become one call of `compress`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xdeploy.handover import CompressionPlan, RelevanceMap
from xdeploy.recipe import Recipe
from xdeploy.request import Progress
from xdeploy.trainoptions import RecoverOptions

if TYPE_CHECKING:
    from xdeploy.compress.apply import Memory
    from xdeploy.compress.checkpoint import Checkpoint
    from xdeploy.compress.ecq import Rescore
    from xdeploy.compress.model import CompressedModel
    from xdeploy.model.network import Network
    from xdeploy.model.source import SourceModel

SEARCH_SAMPLES = 2000  # validation samples that tell plans apart, and what each step did where nothing is trained
FIRST_DRAW = 2_000_000  # fine-tuning's epochs, which number the shuffles of its data, end before it


def apply_plan(
    source: SourceModel,
    recipe: Recipe,
    relevance: RelevanceMap,
    plan: CompressionPlan,
    progress: Progress,
    memory: Memory | None = None,
    *,
    search: bool = False,
    checkpoint: Checkpoint | None = None,
) -> CompressedModel:
    """Compress the source's network as a plan says.

    Args:
        source: network and data.
        recipe: all options.
        relevance: scores of the source's network.
        plan: one line per weighted layer.
        progress: told about the work.
        memory: what plans of this network have in common.
        search: a plan is being tried out: no training, no measuring of steps.
        checkpoint: where the state of fine-tuning is kept.
    """
    from xdeploy.compress.apply import compress
    from xdeploy.model.top1 import AT_ONCE

    s, o = source, recipe
    recover = RecoverOptions() if search else o.recover
    most = None if recover.epochs else SEARCH_SAMPLES
    return compress(
        s.network,
        plan,
        relevance,
        s.io,
        calibration=lambda: (x for x, _ in s.train_batches(64, limit=o.data.calibration)),
        train=lambda epoch: s.train_batches(o.recover.batch, epoch=epoch, augment=o.recover.augment),
        validation=lambda: s.validation_batches(AT_ONCE, limit=most),
        options=o.compress,
        recover=recover,
        seed=o.seed,
        rescore=None if search else rescorer(s, o),
        progress=progress,
        measure_steps=not search,
        memory=memory,
        ecq=None if search else o.ecq,
        checkpoint=checkpoint,
        train_steps=-(-len(s.train_indices) // o.recover.batch),
    )


def rescorer(source: SourceModel, recipe: Recipe) -> Rescore:
    """Scores any network of the source's data: draw 0 as the score stage does, others with samples of their own."""
    from xdeploy.relevance import score

    drawn = replace(recipe.relevance, samples=recipe.ecq.samples)

    def rescore(network: Network, draw: int) -> RelevanceMap:
        options = drawn if draw else recipe.relevance
        batches = (
            source.train_batches(32, epoch=FIRST_DRAW + draw)
            if draw
            else source.train_batches(32, limit=options.samples)
        )
        return score(network, batches, options, source.fingerprint, seed=recipe.seed)

    return rescore
