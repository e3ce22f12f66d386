"""Kill a small build at every call that changes a file, and at random in fine-tuning and tuning, and look what is left.

    python benchmarks/promises/kills.py                     # evenly chosen calls, some random times
    python benchmarks/promises/kills.py --all --random 100  # every call
    python benchmarks/promises/kills.py --all --calls write,rename,fsync,mkdir  # every call of these
    python benchmarks/promises/kills.py --seconds 600       # until then; the next call goes on

The run folder holds a finished build of another seed. After each kill: it is whole (or the new one is, or a journal
says how to finish); nothing that was started lives on; the next run ends well, its files equal the undisturbed run's,
and no part, lock or scratch is left. Results: benchmarks/results/promises.json, one row per point.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import rows
import small
import warm

TUNED = ("--tune", "quick")
TRAINED = ("--set", "recover.epochs=12")


@dataclass(frozen=True)
class Scene:
    """What every kill starts from: a finished run of another seed, and the hashes of both runs."""

    folder: Path
    more: tuple[str, ...]  # arguments of the run that is killed
    earlier: str
    expected: str
    seconds: float  # the undisturbed run took

    @property
    def work(self) -> Path:
        """Where module and data lie."""
        return self.folder / "work"

    @property
    def before(self) -> Path:
        """The finished run of another seed."""
        return self.folder / "before"

    def fresh(self) -> tuple[Path, warm.Place]:
        """A run folder as it was before, and places for a command, all new."""
        spot = self.folder / "spot"
        shutil.rmtree(spot, ignore_errors=True)
        shutil.copytree(self.before, spot / "out", symlinks=True)
        return spot / "out", warm.Place.below(spot, self.work)


def scene(folder: Path, more: Sequence[str] = ()) -> Scene:
    """Make both runs undisturbed."""
    small.prepare(folder / "work")
    place = warm.Place.below(folder / "first", folder / "work")
    for output, seed, words in ((folder / "before", 7, ()), (folder / "after", 0, more)):
        ended = warm.run(small.command(output, seed, *words), place)
        if ended.code:
            raise SystemExit(f"the undisturbed run ended with {ended.code}: {ended.text}")
    return Scene(folder, tuple(more), small.digest(folder / "before"), small.digest(folder / "after"), ended.seconds)


def found_points(scene: Scene) -> list[warm.Point]:
    """Every call of the build that changes something in its run folder or cache."""
    output, place = scene.fresh()
    trace = scene.folder / "trace"
    ended = warm.run(small.command(output, 0, *scene.more), place, trace=trace)
    if ended.code:
        raise SystemExit(f"the traced run ended with {ended.code}: {ended.text}")
    return warm.points(trace, (output, place.cache, place.temporary))


def kill_at(scene: Scene, point: warm.Point) -> dict[str, Any]:
    """Kill before one call, and judge."""
    output, place = scene.fresh()
    inject = f"{point.call}:signal=SIGKILL:when={point.number}"
    ended = warm.run(small.command(output, 0, *scene.more), place, [inject])
    return {"at": point.name, "file": point.file, **judge(scene, output, place, ended)}


def kill_after(scene: Scene, seconds: float, what: str) -> dict[str, Any]:
    """Kill after some time, and judge."""
    output, place = scene.fresh()

    def strike(pid: int) -> None:
        timer = threading.Timer(seconds, os.kill, (pid, signal.SIGKILL))
        timer.daemon = True
        timer.start()
        timers.append(timer)

    timers: list[threading.Timer] = []
    try:
        ended = warm.run(small.command(output, 0, *scene.more), place, meanwhile=strike)
    finally:
        for timer in timers:
            timer.cancel()
    return {"at": f"{what} {seconds:.2f} s", "file": "", **judge(scene, output, place, ended)}


def judge(scene: Scene, output: Path, place: warm.Place, ended: warm.Ended) -> dict[str, Any]:
    """What the kill left, and what the next run makes of it."""
    wrong = []
    killed = ended.code == -signal.SIGKILL
    if not killed and ended.code:
        wrong.append(f"ended with {ended.code}: {ended.text[-300:]}")
    left = small.digest(output)
    state = "earlier" if left == scene.earlier else "new" if left == scene.expected else "journal"
    if state == "journal" and not (output / ".commit").exists():
        wrong.append("the earlier run is not whole")
    if living := warm.orphans(ended.mark):
        wrong.append(f"lives on: {living}")
    again = warm.run(small.command(output, 0, *scene.more), place)
    if again.code:
        wrong.append(f"the next run ended with {again.code}: {again.text[-300:]}")
    elif small.digest(output) != scene.expected:
        wrong.append("the next run's files differ from the undisturbed run's")
    if litter := small.litter(output, place.cache, place.temporary):
        wrong.append(f"left behind: {litter[:5]}")
    return {"killed": killed, "left": state, "wrong": wrong}


def chosen(found: Sequence[warm.Point], count: int | None) -> list[warm.Point]:
    """Evenly spread over the run, each kind of call at least once; None: all."""
    if count is None or count >= len(found):
        return list(found)
    step = len(found) / count
    picked = {found[int(i * step)] for i in range(count)}
    rng = random.Random(count)
    missing = sorted({p.call for p in found} - {p.call for p in picked})
    picked |= {rng.choice([p for p in found if p.call == call]) for call in missing}
    return [p for p in found if p in picked]


def work(scenes: Sequence[Scene], options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Names of the points and what to call for their rows; random times need the scenes that train and tune."""
    scene = scenes[0]
    found = [p for p in found_points(scene) if not options.calls or p.call in options.calls.split(",")]
    points = chosen(found, None if options.all else options.points)
    random.Random(options.seed).shuffle(points)  # what is done by the end of the time lies all over the run
    for point in points:
        yield f"call {point.name}", lambda point=point: kill_at(scene, point)
    rng = random.Random(options.seed)
    for i in range(options.random):
        what, at = ("fine-tuning", scenes[1]) if i % 2 == 0 else ("tuning", scenes[2])
        seconds = rng.uniform(0.05, 0.95) * at.seconds
        yield f"{what} {i}", lambda at=at, s=seconds, what=what: kill_after(at, s, what)


def main() -> int:
    """Run what is missing, print what is wrong, keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=60, help="calls, evenly chosen (default: 60)")
    parser.add_argument("--all", action="store_true", help="all calls")
    parser.add_argument("--calls", default="", metavar="NAME,NAME", help="of these kinds only (default: all kinds)")
    parser.add_argument("--random", type=int, default=20, help="kills at random times (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the random times")
    rows.add_options(parser)
    options = parser.parse_args()
    warm.load_all()
    with tempfile.TemporaryDirectory(prefix="promise-kills-") as name:
        kinds = ((), TRAINED, TUNED) if options.random else ((),)
        scenes = [scene(Path(name) / str(i), more) for i, more in enumerate(kinds)]
        return rows.work("kills", work(scenes, options), options, _counts)


def _counts(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "points": len(found),
        "killed": sum(r["killed"] for r in found.values()),
        "recovered": sum(not r["wrong"] for r in found.values()),
        "left": {s: sum(r["left"] == s for r in found.values()) for s in ("earlier", "new", "journal")},
    }


if __name__ == "__main__":
    sys.exit(main())
