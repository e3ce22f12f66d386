"""Which steps a plan takes beside pruning and quantising: as the options tell, else what was best where measured.

Nearest codes lose to reconstructed ones wherever nothing is trained, and where zeros and codes stand when training
begins (`benchmarks/results/methods.json`). Zeros that grow while a network is trained are chosen by that training, with
BatchNorm, and so are ECQ's codes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from xdeploy.handover import CompressionPlan
from xdeploy.recipe import CompressOptions, EcqOptions, RecoverOptions


@dataclass(frozen=True, slots=True)
class Steps:
    """reconstruct: codes for what layers give out. batchnorm: behind hidden layers while they are trained.

    restore: moments of the float network given back, before training without BatchNorm or instead of training.
    ecq: with no ramp where zeros are there when training begins.
    """

    reconstruct: bool
    restore: bool
    batchnorm: bool
    ecq: EcqOptions | None

    @property
    def needs_moments(self) -> bool:
        """Whether moments of the float network's outputs are used."""
        return self.restore or self.batchnorm


def steps_of(plan: CompressionPlan, options: CompressOptions, recover: RecoverOptions, ecq: EcqOptions | None) -> Steps:
    """The steps of a plan; options that are not set (None) follow the rest."""
    trained = recover.epochs > 0
    assigned = ecq is not None and ecq.method != "off"
    grow = trained and plan.sparse and options.reconstruct is not True
    rebuilt = (not grow and not assigned) if options.reconstruct is None else options.reconstruct
    batchnorm = trained and (grow if recover.batchnorm is None else recover.batchnorm)
    if rebuilt and plan.sparse:
        ecq = replace(ecq or EcqOptions(), ramp=0.0)
    return Steps(rebuilt, options.restore and not batchnorm and not grow, batchnorm, ecq)
