"""Let the system refuse single calls of a small build (no room, no right, a faulty disk, too many files), and look.

    python benchmarks/promises/faults.py                # evenly chosen calls
    python benchmarks/promises/faults.py --all          # every call, every error that it can give
    python benchmarks/promises/faults.py --seconds 600  # until then; the next call goes on

The run folder holds a finished build of another seed. A refused call is either of no matter and the build ends well,
or the command ends with exit code 1 (2: the folder cannot be written at all) and one message that names a file of the
run, no traceback. Either way the run folder is whole, no part or scratch is left, and the next undisturbed run's files
equal those of a run that never met the fault. Results: benchmarks/results/promises.json, one row per point and error.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import rows
import small
import warm

_ROOM, _RIGHT, _DISK, _FILES = ("ENOSPC",), ("EROFS", "EACCES"), ("EIO",), ("EMFILE",)
ERRORS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("write", "pwrite64", "ftruncate"), (*_ROOM, *_DISK)),
    **dict.fromkeys(("fsync", "fdatasync"), (*_ROOM, *_DISK)),
    **dict.fromkeys(("rename", "renameat", "renameat2", "mkdir", "mkdirat"), (*_ROOM, *_RIGHT, *_DISK)),
    **dict.fromkeys(("link", "linkat"), (*_ROOM, *_RIGHT, *_DISK)),
    "openat": (*_ROOM, *_RIGHT, *_DISK, *_FILES),
}
UNDONE = ("unlink", "unlinkat", "rmdir")  # refused, they leave what they were to remove to the next run
ERRORS |= dict.fromkeys(UNDONE, (*_RIGHT, *_DISK))
_LONGEST = 2000  # characters of a message at most


@dataclass(frozen=True)
class Fault:
    """One call that is refused: the error's name, and where."""

    error: str
    point: warm.Point

    @property
    def name(self) -> str:
        """As `ENOSPC write:12`."""
        return f"{self.error} {self.point.name}"

    @property
    def inject(self) -> str:
        """For strace."""
        return f"{self.point.call}:error={self.error}:when={self.point.number}"


def faults(points: Iterable[warm.Point]) -> list[Fault]:
    """Every error that each of the points can meet, in the order of the calls."""
    return [Fault(error, p) for p in points for error in ERRORS.get(p.call, ())]


def chosen(found: Sequence[Fault], count: int | None, seed: int = 0) -> list[Fault]:
    """So many of them at random, every error and every kind of call among them; None: all."""
    if count is None or count >= len(found):
        return list(found)
    rng = random.Random(seed)
    kinds: list[Callable[[Fault], str]] = [lambda f: f.error, lambda f: f.point.call]
    picked: list[Fault] = []
    for kind in kinds:
        for value in sorted({kind(f) for f in found} - {kind(f) for f in picked}):
            picked.append(rng.choice([f for f in found if kind(f) == value]))
    rest = [f for f in found if f not in picked]
    picked += rng.sample(rest, max(0, count - len(picked)))
    return [f for f in found if f in picked]


def judged(ended: warm.Ended, fault: Fault, folders: Sequence[Path]) -> list[str]:
    """What is wrong with how a command ended whose call was refused; `folders`: of its run."""
    text = ended.text
    if ended.code == 0:
        return [f"ended well, but said: {text[-300:]}"] if "error" in text.lower() else []
    wrong = []
    if ended.code not in (1, 2):
        wrong.append(f"ended with {ended.code}")
    if text.count("error: ") != 1 or "Traceback" in text or "internal error" in text or len(text) > _LONGEST:
        wrong.append(f"no clear message: {text[-600:]}")
    if not any(str(f) in text for f in folders):
        wrong.append(f"the message names no file of the run: {text[-300:]}")
    return wrong


def refuse(
    fault: Fault,
    work: warm.Work,
    output: Path,
    place: warm.Place,
    content: Callable[[Path], str],
    states: tuple[str, str],
) -> dict[str, Any]:
    """Run the work with one call refused, then undisturbed, and judge both.

    Args:
        fault: the call.
        work: the command.
        output: run folder, with a finished run of another seed in it.
        place: folders of the command.
        content: hash of what a run folder holds.
        states: this hash of the earlier run, and of the undisturbed one.
    """
    earlier, expected = states
    trace = place.temporary.parent / "refused"
    ended = warm.run(work, place, [fault.inject], trace)
    folders = (output, place.cache, place.temporary)
    wrong = judged(ended, fault, folders)
    if "(INJECTED)" not in trace.read_text(errors="replace"):
        wrong.append("no call was refused")
    left = content(output)
    state = "earlier" if left == earlier else "new" if left == expected else "journal"
    if ended.code == 0 and state != "new":
        wrong.append("ended well, but the files differ from the undisturbed run's")
    moving = (output / ".commit").exists()
    if state == "journal" and not moving:
        wrong.append("the earlier run is not whole")
    # a journal and what it moves stay for the next run, and so does what could not be removed
    if fault.point.call not in UNDONE and not moving and (litter := _parts(folders)):
        wrong.append(f"left behind: {litter[:5]}")
    if living := warm.orphans(ended.mark):
        wrong.append(f"lives on: {living}")
    again = warm.run(work, place)
    if again.code:
        wrong.append(f"the next run ended with {again.code}: {again.text[-300:]}")
    elif content(output) != expected:
        wrong.append("the next run's files differ from the undisturbed run's")
    if litter := small.litter(*folders):
        wrong.append(f"the next run left behind: {litter[:5]}")
    return {"file": fault.point.file, "code": ended.code, "left": state, "wrong": wrong}


def _parts(folders: Sequence[Path]) -> list[str]:
    """What no ended run leaves, other than `unfinished`, which the next run takes up."""
    return [name for name in small.litter(*folders) if name != "unfinished"]


def _jobs(at: Any, options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Names of the faults and what to call for their rows."""
    import kills

    found = faults(kills.found_points(at))
    for fault in chosen(found, None if options.all else options.points, options.seed):

        def job(fault: Fault = fault) -> dict[str, Any]:
            output, place = at.fresh()
            return refuse(fault, small.command(output), output, place, small.digest, (at.earlier, at.expected))

        yield fault.name, job


def main() -> int:
    """Run what is missing, print what is wrong, keep the rows."""
    import kills

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=60, help="calls, chosen by the seed (default: 60)")
    parser.add_argument("--all", action="store_true", help="all calls with all their errors")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    rows.add_options(parser)
    options = parser.parse_args()
    warm.load_all()
    with tempfile.TemporaryDirectory(prefix="promise-faults-") as name:
        at = kills.scene(Path(name))
        return rows.work("faults", _jobs(at, options), options, _counts)


def _counts(found: dict[str, Any]) -> dict[str, Any]:
    codes = [r["code"] for r in found.values()]
    return {
        "points": len(found),
        "refused": sum(code != 0 for code in codes),
        "of_no_matter": codes.count(0),
        "held": sum(not r["wrong"] for r in found.values()),
        "by_error": {e: sum(k.startswith(f"{e} ") for k in found) for e in sorted({k.split()[0] for k in found})},
    }


if __name__ == "__main__":
    sys.exit(main())
