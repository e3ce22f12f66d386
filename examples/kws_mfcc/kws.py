"""Spoken digits on an emulated microcontroller: from raw audio to the word, features in C, the network by xdeploy.

    python examples/kws_mfcc/kws.py ../shared/data/fsdd.zip -o out-kws

trains (minutes; skipped where the folder has the weights), builds the package for the board's core, writes tables and
recordings as C, builds the firmware, runs it in QEMU, and compares what it heard with the Python path: features by
numpy, the network as `xdeploy run` runs it. Needs CMake, arm-none-eabi-gcc (or --toolchain zig) and qemu-system-arm.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent))
import kws_train as train
import mfcc_tables as tables

from xdeploy.formats import QParams
from xdeploy.pipeline import run, run_inputs
from xdeploy.recipe import Recipe
from xdeploy.request import Request

HERE = Path(__file__).resolve().parent
BOARDS = {"mps2-an386": "cortex-m4", "mps3-an547": "cortex-m55"}
SUPPORT = HERE.parents[1] / "targets" / "support" / "example"
TOOLCHAINS = {"gcc": "arm-none-eabi.cmake", "zig": "zig.cmake"}
SHIFT = 5  # of QEMU's -icount: an instruction takes 2^5 ns
ZIG = f"-DZIG={sys.executable};-m;ziglang"


@dataclass(frozen=True)
class Heard:
    """What the firmware printed of one recording; codes as the network was given them and as it gave them."""

    said: str
    word: str
    features: int  # instructions, emulated
    network: int
    scores: NDArray[np.int64]
    codes: NDArray[np.int64] | None = None  # with SHOW_CODES


def packages(folder: Path, targets: Sequence[str], output: Path, recipe: Recipe) -> dict[str, Any]:
    """`xdeploy build` of the trained network, named kws; the report."""
    net = train.network()
    net.load_state_dict(load_file(folder / "kws.safetensors"))
    request = Request(
        model=net,
        data=folder / "train.npz",
        test_data=folder / "test.npz",
        recipe=recipe.with_options({"package.name": "kws"}),
        targets=tuple(targets),
        output=output,
    )
    report = run(request).report
    assert report is not None
    return report


def compiled(package: Path, made: Path, folder: Path, board: str = "", *options: str, toolchain: str = "gcc") -> Path:
    """CMake's work: the firmware for a board, or without one the program for this computer."""
    words = ["cmake", "-S", HERE, "-B", folder, f"-DXDEPLOY_PACKAGE={package.resolve()}", f"-DTABLES={made.resolve()}"]
    if board:
        words += [f"-DBOARD={board}", f"-DCMAKE_TOOLCHAIN_FILE={SUPPORT / TOOLCHAINS[toolchain]}", ZIG]
    for command in ([*words, *options], ["cmake", "--build", folder]):
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{command[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return folder / ("kws.elf" if board else "kws")


def listen(image: Path, board: str) -> list[Heard]:
    """Run the firmware in QEMU: what it heard of each recording."""
    words = [
        "qemu-system-arm",
        "-M",
        board,
        "-nographic",
        "-semihosting",
        "-icount",
        f"shift={SHIFT}",
        "-kernel",
        image,
    ]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise SystemExit(f"the firmware ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return parse(done.stdout)


def parse(text: str) -> list[Heard]:
    """What stands in the serial port's text."""
    found = []
    pattern = r"said (\w+), heard (\w+), features (\d+) us, network (\d+) us\s+(?:input ([-\d ]+)\s+)?scores ([-\d ]+)"
    for said, word, features, network, codes, scores in re.findall(pattern, text):
        counts = [round(int(us) * 1000 / 2**SHIFT) for us in (features, network)]
        given = np.array(codes.split(), int) if codes else None
        found.append(Heard(said, word, counts[0], counts[1], np.array(scores.split(), int), given))
    return found


@dataclass(frozen=True)
class PythonPath:
    """The same recordings without C: features by numpy, their codes, the network's codes by `xdeploy run`."""

    features: NDArray[np.float32]  # (N, FRAMES, COEFFICIENTS)
    codes: NDArray[np.int8]  # (N, FRAMES * COEFFICIENTS)
    scores: NDArray[np.int8]  # (N, 10)


def python_path(chosen: Sequence[tables.Spoken], norm: tables.Norm, package: Path, via: str | None) -> PythonPath:
    """`via`: host, unicorn, qemu, or None for the target's own."""
    x = np.stack([tables.numpy_features(s, norm) for s in chosen])
    q = QParams(**json.loads((package / "manifest.json").read_text())["io"]["input_q"])
    with TemporaryDirectory() as folder:
        given, gotten = Path(folder) / "x.npy", Path(folder) / "y.npy"
        np.save(given, x[:, None])
        run_inputs(package, via, given, gotten)
        return PythonPath(x, q.quantise(x).reshape(len(x), -1), np.load(gotten))


def summary(heard: Sequence[Heard], wanted: PythonPath, report: dict[str, Any], target: str) -> str:
    """What came out, as text."""
    words = wanted.scores.argmax(1)
    agree = sum(h.word == train.WORDS[w] for h, w in zip(heard, words, strict=True))
    right = sum(h.said == h.word for h in heard)
    features, network = (np.array([getattr(h, n) for h in heard]) for n in ("features", "network"))
    size = report["targets"][target]
    accuracy = report["accuracy"]
    return "\n".join(
        [
            f"{right} of {len(heard)} recordings heard as they were said, on the emulated device, from raw audio",
            f"{agree} of {len(heard)} words are those of the Python path",
            f"features {features.mean():,.0f} instructions a second of sound (emulated), network {network.mean():,.0f}:"
            f" features are {100 * features.mean() / (features + network).mean():.0f} % of both",
            f"network: {accuracy['float']['value']:.2f} % float, {accuracy['deployed']['value']:.2f} % deployed, of"
            f" {accuracy['deployed']['n']} test recordings; {size['flash']['value']:,} B of flash,"
            f" {size['ram']['value']:,} B of RAM ({target}, without features)",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="recordings as DIGIT_SPEAKER_INDEX.wav in a zip")
    parser.add_argument("-o", "--output", type=Path, default=Path("out-kws"))
    parser.add_argument("--board", choices=BOARDS, default="mps2-an386")
    parser.add_argument("--toolchain", choices=TOOLCHAINS, default="gcc")
    parser.add_argument("--count", type=int, default=40, help="recordings of the test on the device (default: 40)")
    parser.add_argument("--copies", type=int, default=4, help="of each training recording, all but one varied")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--limit", type=int, help="recordings of training and of test; all by default")
    args = parser.parse_args()
    features, target = args.output / "features", BOARDS[args.board]
    if not (features / "kws.safetensors").is_file():
        train.prepare(args.archive, features, args.copies, args.limit)
        train.train(features, args.epochs)
    report = packages(features, [target], args.output, Recipe())
    norm, made = tables.read_norm(features), args.output / "tables"
    chosen = tables.spread(tables.read_recordings(args.archive, held=True), args.count)
    tables.write(norm, chosen, made)
    image = compiled(args.output / target, made, args.output / "firmware", args.board, toolchain=args.toolchain)
    via = "unicorn" if target == "cortex-m4" else "qemu"
    heard = listen(image, args.board)
    print(summary(heard, python_path(chosen, norm, args.output / target, via), report, target))


if __name__ == "__main__":
    main()
