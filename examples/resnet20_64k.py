"""ResNet-20 on a microcontroller with 64 KiB of flash and 40 KiB of RAM (a float one takes 1,051 KiB of weights alone).

    python examples/resnet20_64k.py --weights resnet20.safetensors --data train.zip --test-data test.zip -o out-64k

Most weights become zero, LRP decides how many in which layer, the others get 3 bits; layers whose weights are mostly
zero are stored and run as the list of those that are not. The share that stays is the largest of a few whose code and
weights together fit the flash: the target's file says its size, and a build that does not fit is refused. Without
--epochs nothing is trained, and so much pruning then costs most of the accuracy: the summary says what is left. With
--epochs 10 (hours without a fast machine; killed runs go on) the network learns to do without.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xdeploy.console import Console
from xdeploy.errors import GateError
from xdeploy.pipeline import run
from xdeploy.recipe import Recipe
from xdeploy.request import Progress, Request

TARGET = Path(__file__).resolve().parent / "stm32l412.toml"
MODEL = "xdeploy.model.zoo:resnet20"
SHARES = (0.065, 0.06, 0.055, 0.05, 0.045)  # of the weights that stay
OPTIONS: dict[str, Any] = {
    "plan.formats": ["int3"],
    "plan.rule": "uniform",
    "plan.density_by": "relevance",
    "plan.least_density": 0.04,
}
TRAINING: dict[str, Any] = {
    "ecq.method": "ecq",
    "recover.lr": 0.05,
    "recover.decay": 0.0005,
    "recover.distill": 0.7,
}


def recipe_for(share: float, epochs: int, more: Mapping[str, Any]) -> Recipe:
    """The recipe in which this share of the weights is not zero."""
    training = TRAINING | {"recover.epochs": epochs} if epochs else {}
    return Recipe().with_options({**OPTIONS, "plan.density": share, **training, **more})


def fitted(
    request: Request, epochs: int, shares: Sequence[float], more: Mapping[str, Any], progress: Progress | None = None
) -> tuple[float, dict[str, Any]]:
    """The first of `shares` whose code and weights fit the target, and its report.

    Whether one fits hardly depends on the training, so the search is without; the trained network is built last.

    Raises:
        GateError: none of them fits.
    """
    reason: GateError | None = None
    for share in shares:
        try:
            report = run(_with(request, recipe_for(share, 0, more), "search"), progress=progress).report
            if epochs:
                report = run(_with(request, recipe_for(share, epochs, more), "trained"), progress=progress).report
        except GateError as error:
            reason = error
            print(f"{100 * share:g} % of the weights: {error.message}")
            continue
        assert report is not None
        return share, report
    raise GateError(f"no share of {', '.join(map(str, shares))} fits", hint=str(reason))


def _with(request: Request, recipe: Recipe, folder: str) -> Request:
    return Request(
        request.model, request.weights, request.data, request.test_data, recipe, request.targets,
        request.output / folder,
    )  # fmt: skip


def summary(share: float, epochs: int, report: Mapping[str, Any]) -> str:
    """What came out, as text: nothing here is computed, all is the report's."""
    (name,) = report["targets"]
    row, accuracy = report["targets"][name], report["accuracy"]
    float_bytes, packed = report["model"]["float_bytes"]["value"], report["weights"]["packed_bytes"]["value"]
    trained = f"{epochs} epochs of fine-tuning" if epochs else "no fine-tuning"
    return "\n".join(
        [
            f"{name}: {row['flash']['value']:,} of 65,536 B of flash, {row['ram']['value']:,} of 40,960 B of RAM"
            f" and {row['stack']['value']:,} B of stack; outputs {row['verdict']}",
            f"weights {packed:,} B of {float_bytes:,} as float; {100 * share:g} % of them are not zero",
            f"accuracy {accuracy['deployed']['value']:.2f} % by the deployed integer code,"
            f" {accuracy['float']['value']:.2f} % float, of {accuracy['deployed']['n']} test images; {trained}",
            f"{row['instructions']['value']:,} instructions an inference (emulated)",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help=f"default: {MODEL}")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors")
    parser.add_argument("--data", type=Path, required=True, help="training images: class folders in a folder or zip")
    parser.add_argument("--test-data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=0, help="of fine-tuning (default: none)")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the weights that stay, to try")
    parser.add_argument("-o", "--output", type=Path, default=Path("out-64k"))
    args = parser.parse_args()
    request = Request(args.model, args.weights, args.data, args.test_data, Recipe(), (str(TARGET),), args.output)
    with Console() as console:
        share, report = fitted(request, args.epochs, args.shares, {}, console)
    print(summary(share, args.epochs, report))


if __name__ == "__main__":
    main()
