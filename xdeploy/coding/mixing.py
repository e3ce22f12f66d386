"""Adaptive probabilities of binary decisions: counts in several contexts, mixed in the logistic domain.

After the context mixing of PAQ (Mahoney 2005, "Adaptive weighing of context models for lossless data compression"),
but for blocks of decisions at once: all probabilities of a block come from the blocks before it. What follows the
two tables is integer arithmetic, so that encoder and decoder agree to the last bit on every machine; the tables are
rounded from logarithms that are far enough from ties for any correct libm (tested).

A decision has a *node* (which question of a symbol it is) and a row of contexts (further facts known at that point).
Each context keeps how often 1 was seen there; its estimate leans on the node's own as long as it has seen little:
    e_k = (n1_k + lean * p_node) / (n_k + lean)
    logit p = w_0 * logit p_node + sum_k w_k * (logit e_k - logit p_node)
and the weights w of the question's kind descend the coding cost.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.coding.stream import ONE, Bits, Coder
from xdeploy.formats import Int64

UNIT = 256  # logits are in units of 1/256
TOP = 2047  # largest logit: p within 22..65514 of 2^16, 5e-4 bits at least for a decision
WEIGHT = 1 << 16  # weight 1
LIMIT = 2048  # observations after which counts are halved (old ones fade)
LEAN = 4  # observations that the node's own estimate counts for in a context
FIRST = WEIGHT // 4  # weight of a context before anything is learnt
SLOWEST = 14  # a block's mean gradient moves weights by half of it at first, later by 2^(8 - SLOWEST) of it


@cache
def stretch_table() -> Int64:
    """Logit of p / 2^16 for p = 0..2^16, in units of 1/256, within +-TOP."""
    p = np.clip(np.arange(ONE + 1, dtype=np.float64), 0.5, ONE - 0.5)
    found: Int64 = np.clip(np.rint(UNIT * np.log(p / (ONE - p))), -TOP, TOP).astype(np.int64)
    return found


@cache
def squash_table() -> Int64:
    """2^16 / (1 + exp(-x / 256)) for x = -TOP..TOP (index 0 is -TOP)."""
    x = np.arange(-TOP, TOP + 1, dtype=np.float64)
    return np.rint(ONE / (1.0 + np.exp(-x / UNIT))).astype(np.int64)


class Mixer:
    """Counts of all contexts and the weights of each kind of question.

    Args:
        nodes: number of nodes.
        lasting: contexts whose counts outlive a layer (what they say does not depend on the layer).
        kinds: kinds of questions, each with its own weights.
        inputs: contexts of one decision, the same number for all kinds.
    """

    def __init__(self, nodes: int, lasting: int, kinds: int, inputs: int) -> None:
        self.nodes, self.lasting = nodes, nodes + lasting
        self.n = np.zeros(self.lasting, np.int64)
        self.n1 = np.zeros(self.lasting, np.int64)
        self.weights = np.full((kinds, inputs + 1), FIRST, np.int64)
        self.weights[:, 0] = WEIGHT
        self.steps = np.zeros(kinds, np.int64)

    def copy(self) -> Mixer:
        """The same state, apart."""
        other = Mixer.__new__(Mixer)
        other.nodes, other.lasting = self.nodes, self.lasting
        for name in ("n", "n1", "weights", "steps"):
            setattr(other, name, getattr(self, name).copy())
        return other

    def begin(self, passing: int) -> int:
        """Start a layer with room for `passing` contexts of its own; returns the number of the first one.

        What was learnt before stays as an opinion that gives way quickly.
        """
        n, n1 = self.n[: self.lasting], self.n1[: self.lasting]
        for keep, part in ((64, slice(0, self.nodes)), (160, slice(self.nodes, self.lasting))):
            over = np.maximum(n[part], keep)
            n1[part] = n1[part] * keep // over
            n[part] = np.minimum(n[part], keep)
        self.n = np.concatenate([n, np.zeros(passing, np.int64)])
        self.n1 = np.concatenate([n1, np.zeros(passing, np.int64)])
        np.minimum(self.steps, 64, out=self.steps)
        return self.lasting

    def code(self, coder: Coder, kind: int, node: Int64, contexts: Int64, given: NDArray[Any] | None) -> Bits:
        """Code a block of decisions and learn from it.

        Args:
            coder: where they go or come from.
            kind: kind of question.
            node: (B,) node of each decision.
            contexts: (K, B) numbers of contexts, which are no nodes.
            given: (B,) the decisions, None to decode.

        Returns:
            The decisions, 0 or 1.
        """
        if not node.size:
            return np.zeros(0, np.uint8)
        index = np.concatenate((node[None], contexts))
        n, n1 = self.n[index], self.n1[index]
        base = ((2 * n1[0] + 1) << 16) // (2 * n[0] + 2)
        leaning = ((n1[1:] << 16) + LEAN * base) // (n[1:] + LEAN)
        inputs = stretch_table()[np.concatenate((base[None], leaning))]
        inputs[1:] -= inputs[0]
        x = (self.weights[kind] @ inputs) >> 16
        p = squash_table()[np.minimum(np.maximum(x, -TOP), TOP) + TOP]
        bits = coder.bits(p, given)
        self._learn(kind, index, inputs, p, bits)
        return bits

    def _learn(self, kind: int, index: Int64, inputs: Int64, p: Int64, bits: Bits) -> None:
        wide = bits.astype(np.int64)
        gradient = (inputs @ ((wide << 16) - p)) // len(p)  # units of 2^-24
        step = int(self.steps[kind])
        self.steps[kind] = step + 1
        self.weights[kind] += gradient >> min(SLOWEST, 7 + (step + 8).bit_length() // 2)
        seen, flat = np.empty(index.shape, np.int64), index.ravel()
        seen[:] = wide
        np.add.at(self.n, flat, 1)
        np.add.at(self.n1, flat, seen.ravel())
        full = flat[self.n[flat] > LIMIT]
        if full.size:
            full = np.unique(full)
            self.n[full] >>= 1
            self.n1[full] >>= 1
