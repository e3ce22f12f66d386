"""The Optuna study of a sweep: a slot for every trial, taken by one process each, given out again when that dies.

Slots are Optuna's waiting trials, numbered by `position`. A process takes one by Optuna's change of state from WAITING
to RUNNING, which only one can make, and writes a sign of life while it works. A trial whose process has ended (on this
machine) or has given no sign for GRACE seconds (on others) is marked lost and its position gets a new slot, MOST times.
Two processes may add a slot for the same position at once: of such, the one with the lower number is worked on.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from optuna import Study as OptunaStudy
from optuna import create_study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from xdeploy.sweep.definition import Definition
from xdeploy.sweep.samplers import Sampled, propose, write
from xdeploy.sweep.storage import machine, started

BEAT, GRACE = 15.0, 120.0  # seconds
MOST = 3  # times that a trial is begun, if its process dies each time
_LIVE = (TrialState.WAITING, TrialState.RUNNING)
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


class Study:
    """One study, joined by a definition; `trials` slots at least are in it afterwards."""

    def __init__(self, definition: Definition, storage: BaseStorage, trials: int | None, grace: float = GRACE) -> None:
        directions = [o.direction for o in definition.objectives]
        self.definition, self.storage, self.grace = definition, storage, grace
        self.optuna: OptunaStudy = create_study(
            storage=storage, study_name=definition.name, directions=directions, load_if_exists=True
        )  # fmt: skip
        self.id = storage.get_study_id_from_name(definition.name)
        self.points = definition.space.grid() if definition.sampler == "grid" else None
        self.wanted = self._wanted(trials)
        self._seen: dict[int, tuple[str, float]] = {}  # trial number -> last sign of life, when it was new here
        self.optuna.set_user_attr("objectives", [o.name for o in definition.objectives])

    def _wanted(self, trials: int | None) -> int:
        whole = len(self.points) * len(self.definition.targets) if self.points is not None else trials or 0
        return whole if trials is None else min(whole, trials)

    # ------------------------------------------------------------------------------------------------- trials
    def trials(self) -> list[FrozenTrial]:
        """All trials but surplus slots and those that are tried again, by number."""
        found = self.storage.get_all_trials(self.id, deepcopy=False)
        forgotten = set(self.storage.get_study_user_attrs(self.id).get("forgotten", []))
        return [t for t in found if t.user_attrs.get("outcome") != "surplus" and t.number not in forgotten]

    def settled(self) -> dict[int, FrozenTrial]:
        """The trial with the result of each position that has one, of those wanted."""
        found: dict[int, FrozenTrial] = {}
        for t in self.trials():
            position = t.user_attrs.get("position", -1)
            if 0 <= position < self.wanted and is_settled(t):
                found.setdefault(position, t)
        return dict(sorted(found.items()))

    def top_up(self, again: bool = False) -> None:
        """Give a slot to every position that has none; with `again` also to those that failed."""
        trials = self.trials()
        if again:
            failed = [t.number for t in trials if t.user_attrs.get("outcome") == "failed"]
            before = self.storage.get_study_user_attrs(self.id).get("forgotten", [])
            self.optuna.set_user_attr("forgotten", [*before, *failed])
            trials = self.trials()
        held = {t.user_attrs.get("position") for t in trials if t.state in _LIVE or is_settled(t)}
        for position in range(self.wanted):
            if position not in held:
                target = self.definition.targets[position % len(self.definition.targets)]
                self.optuna.enqueue_trial({}, user_attrs={"position": position, "target": target})

    def take(self) -> Sampled | None:
        """A slot for this process to work on, its point chosen; None: there is no free one now."""
        for slot in self.storage.get_all_trials(self.id, deepcopy=False, states=(TrialState.WAITING,)):
            if not 0 <= slot.user_attrs.get("position", -1) < self.wanted:
                continue
            self._note(slot, "worker", _me())
            if not self._claim(slot):
                continue
            self._note(slot, "worker", _me())
            if self._is_surplus(slot):
                self._end(slot, TrialState.FAIL, {"outcome": "surplus"})
                continue
            return self._sampled(slot)
        return None

    def _claim(self, slot: FrozenTrial) -> bool:
        try:
            return self.storage.set_trial_state_values(slot._trial_id, state=TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False

    def _is_surplus(self, slot: FrozenTrial) -> bool:
        others = [t for t in self.trials() if t.user_attrs.get("position") == slot.user_attrs["position"]]
        return any(is_settled(t) or (t.state == TrialState.RUNNING and t.number < slot.number) for t in others)

    def _sampled(self, slot: FrozenTrial) -> Sampled:
        position, target = slot.user_attrs["position"], slot.user_attrs["target"]
        if self.points is not None:
            chosen = Sampled(position, target, dict(self.points[position // len(self.definition.targets)]))
        else:
            before = [t for t in self.trials() if t.user_attrs.get("target") == target and t.number != slot.number]
            chosen = propose(self.definition, position, target, before)
        chosen.trial = slot
        write(self.storage, self.definition.space, chosen)
        return chosen

    # ------------------------------------------------------------------------------------------------ results
    def complete(self, taken: Sampled, values: list[float], attributes: dict[str, Any]) -> None:
        """The trial has these values, in the order of the objectives."""
        self._end(taken.slot, TrialState.COMPLETE, {"outcome": "complete", **attributes}, values)

    def prune(self, taken: Sampled, reason: str) -> None:
        """The trial's plan cannot be met."""
        self._end(taken.slot, TrialState.PRUNED, {"outcome": "pruned", "reason": reason})

    def fail(self, taken: Sampled, reason: str) -> None:
        """The trial has ended with an error, as it would again."""
        self._end(taken.slot, TrialState.FAIL, {"outcome": "failed", "reason": reason})

    def release(self, taken: Sampled) -> None:
        """The trial was given up by this process: its position is free again."""
        self._end(taken.slot, TrialState.FAIL, {"outcome": "released"})

    def _end(
        self, t: FrozenTrial, state: TrialState, attributes: dict[str, Any], values: list[float] | None = None
    ) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):  # taken for lost meanwhile: the new one gives the same
            for key, value in attributes.items():
                self._note(t, key, value)
            self.storage.set_trial_state_values(t._trial_id, state=state, values=values)

    def _note(self, t: FrozenTrial, key: str, value: Any) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):
            self.storage.set_trial_user_attr(t._trial_id, key, value)

    # ------------------------------------------------------------------------------------------- signs of life
    @contextlib.contextmanager
    def alive(self, taken: Sampled) -> Iterator[None]:
        """Give signs of life meanwhile."""
        over = threading.Event()

        def beat() -> None:
            count = 0
            while not over.wait(BEAT):
                count += 1
                with contextlib.suppress(Exception):  # a storage out of reach for a moment: the next one tells
                    self._note(taken.slot, "beat", count)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def bury(self) -> int:
        """Mark trials whose process is gone as lost, give out their positions again, and tell how many there were."""
        lost = 0
        for t in self.trials():
            if t.state == TrialState.RUNNING and self._is_dead(t):
                before = [x for x in self.trials() if x.user_attrs.get("position") == t.user_attrs.get("position")]
                times = 1 + sum(x.user_attrs.get("outcome") == "lost" for x in before)
                told = {"outcome": "lost"}
                if times >= MOST:
                    told = {"outcome": "failed", "reason": f"its process ended {times} times without a result"}
                self._end(t, TrialState.FAIL, told)
                lost += 1
        if lost:
            self.top_up()
        return lost

    def _is_dead(self, t: FrozenTrial) -> bool:
        worker = t.user_attrs.get("worker") or {}
        if worker.get("machine") == machine():
            return bool(started(int(worker["pid"])) != worker["started"])
        sign, now = str(t.user_attrs.get("beat")), time.monotonic()
        known, since = self._seen.get(t.number, (None, now))
        if known != sign:  # by this machine's clock alone: those of others may differ
            self._seen[t.number] = (sign, now)
            return False
        return now - since > self.grace


def is_settled(t: FrozenTrial) -> bool:
    """Whether the trial is its position's result."""
    return t.state in _DONE or (t.state == TrialState.FAIL and bool(t.user_attrs.get("outcome") == "failed"))


def _me() -> dict[str, Any]:
    return {"machine": machine(), "pid": os.getpid(), "started": started(os.getpid())}
