"""A network that never saw PyTorch: scikit-learn's MLPClassifier through its own ONNX exporter to a Cortex-M4.

    pip install skl2onnx
    python examples/from_another_framework.py -o out-sklearn

Three things to know of such files. An exporter of classifiers gives two outputs, label and probabilities: a network has
one, so the file is cut at the probabilities. Preprocessing such as StandardScaler becomes an operator of another domain
(ai.onnx.ml): scale before, as here, or fold it into the first layer. And `xdeploy check` says both before any work.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from xdeploy.pipeline import run, run_inputs
from xdeploy.recipe import Recipe
from xdeploy.request import Request


@dataclass(frozen=True)
class Digits:
    """Pixels as float32 (N, 64) in 0..1, and labels."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]

    def save(self, path: Path) -> Path:
        """As xdeploy takes data."""
        np.savez(path, x=self.x, y=self.y)
        return path


def data(seed: int = 0) -> tuple[Digits, Digits]:
    """Training and test samples of the digits that come with scikit-learn."""
    digits = load_digits()
    x, y = (digits.data / 16.0).astype(np.float32), digits.target.astype(np.int64)
    rows = train_test_split(np.arange(len(x)), test_size=0.25, random_state=seed, stratify=y)
    train, test = (Digits(x[r], y[r]) for r in rows)
    return train, test


def trained(train: Digits, hidden: Sequence[int] = (64, 32), iterations: int = 200, seed: int = 0) -> MLPClassifier:
    """Fitted by scikit-learn."""
    return MLPClassifier(hidden, max_iter=iterations, early_stopping=True, random_state=seed).fit(train.x, train.y)


def exported(model: MLPClassifier, folder: Path) -> Path:
    """The classifier's ONNX file, cut at its probabilities."""
    from skl2onnx import to_onnx

    whole, cut = folder / "classifier.onnx", folder / "network.onnx"
    onnx.save(to_onnx(model, np.zeros((1, 64), np.float32), options={"zipmap": False}, target_opset=17), whole)
    onnx.utils.extract_model(whole, cut, ["X"], ["probabilities"])
    return cut


def deployed_labels(package: Path, x: NDArray[np.float32]) -> NDArray[np.int64]:
    """What the package's code says in the emulator of its target, (N,)."""
    given, gotten = package / "x.npy", package / "y.npy"
    np.save(given, x)
    run_inputs(package, None, given, gotten)
    codes = np.load(gotten)
    given.unlink()
    gotten.unlink()
    labels: NDArray[np.int64] = codes.argmax(1)
    return labels


def deploy(
    folder: Path, recipe: Recipe, target: str = "cortex-m4", iterations: int = 200
) -> tuple[dict[str, Any], str]:
    """Train, export, build and run; the report, and what came out as text."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = data()
    model = trained(train, iterations=iterations)
    request = Request(
        model=str(exported(model, folder)),
        data=train.save(folder / "train.npz"),
        test_data=test.save(folder / "test.npz"),
        recipe=recipe,
        targets=(target,),
        output=folder / "run",
    )
    report = run(request).report
    assert report is not None
    theirs = model.predict(test.x)
    ours = deployed_labels(folder / "run" / target, test.x)
    row = report["targets"][target]
    return report, "\n".join(
        [
            f"scikit-learn: {100 * np.mean(theirs == test.y):.2f} % of {len(test.y)} test samples are right",
            f"{target}, emulated: {100 * np.mean(ours == test.y):.2f} %; {np.sum(ours == theirs)} labels are the same",
            f"{row['flash']['value']:,} B of flash, {row['ram']['value']:,} B of RAM,"
            f" {row['instructions']['value']:,} instructions an inference, outputs {row['verdict']}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("out-sklearn"))
    args = parser.parse_args()
    print(deploy(args.output, Recipe())[1])


if __name__ == "__main__":
    main()
