"""Boards that trials are timed on: which one a target has, and what it tells of a built trial.

A tracker lends each board to one trial at a time, so that several processes share it and any number of boards; a server
or an ssh host is one board, which one process uses. Boards that want a program flashed by hand cannot take part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xdeploy.bench.runner import RunOptions
from xdeploy.bench.via import SCHEMES, admit, parse_address
from xdeploy.errors import DeviceError, UsageError, choose_from
from xdeploy.handover import Measurement
from xdeploy.pipeline import bench_artifact
from xdeploy.target import Target

_SHARED, _ALONE = ("tracker",), ("rpc", "ssh")


@dataclass(frozen=True, slots=True)
class Boards:
    """via: a target's name -> where its board is; targets that are not in it keep their own runner.

    remote: boards may be behind another machine's port, without protection.
    """

    via: Mapping[str, str] = field(default_factory=dict)
    remote: bool = False

    @property
    def kinds(self) -> dict[str, str]:
        """What trials depend on: of a tracker only the kind of board, as its port may change from day to day."""
        return {k: parse_address(v).kind or v for k, v in self.via.items()}

    def check_jobs(self, jobs: int) -> None:
        """Refuse several processes on a board that has no one to lend it.

        Raises:
            UsageError: there are several, and such a board.
        """
        alone = [v for v in self.via.values() if v.partition(":")[0] in _ALONE]
        if jobs > 1 and alone:
            raise UsageError(
                f"{jobs} jobs would disturb each other's times on {alone[0]}",
                hint="--jobs 1, or let a tracker lend the board: --via tracker://host:port/kind",
            )

    def measure(self, folder: Path, target: str, repeats: int, keep: Path) -> Measurement | None:
        """What the board of a target tells of the artifact in `folder`, written to `keep` too; None: it has no board.

        Raises:
            TransportError: the board, or who lends it, is out of reach.
            DeviceError: the code fails there, or gives other outputs than the reference.
        """
        via = self.via.get(target)
        if via is None:
            return None
        measurement = bench_artifact(folder, via, RunOptions(repeats, remote=self.remote))
        if measurement.verdict != "bit-exact":
            raise DeviceError(f"{target} via {via}: {measurement.verdict}: {measurement.reason}")
        measurement.save(keep)
        return measurement


def boards_of(texts: Sequence[str], targets: Sequence[Target], remote: bool) -> Boards:
    """The boards of `--via ADDRESS`, which all targets have, and `--via TARGET=ADDRESS`.

    Raises:
        UsageError: no address of a board that takes programs, no such target, or one that no board can run.
    """
    found: dict[str, str] = {}
    names = [t.name for t in targets]
    for text in texts:
        name, equals, address = text.rpartition("=")
        if equals and name not in names:
            raise choose_from("target of --via", name, names)
        scheme = address.partition(":")[0]
        if scheme not in _SHARED + _ALONE:
            allowed = ", ".join(SCHEMES[s] for s in _SHARED + _ALONE)
            raise UsageError(
                f"--via {address!r}: a sweep sends programs to boards by {allowed}",
                hint="without --via, trials run by the targets' own runners",
            )
        admit(address, remote)
        found |= dict.fromkeys([name] if equals else names, address)
    for target in targets:
        if target.kind == "firmware" and target.name in found:
            raise UsageError(
                f"--via {found[target.name]}: {target.name} is firmware, which nothing there can run",
                hint=f"name the targets it is for: --via TARGET={found[target.name]}",
            )
    return Boards(found, remote)
