"""Mistakes on purpose: each ends with its exit code, and says what was given, what is allowed and what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xdeploy.cli import main
from xdeploy.commands.options import FLAGS
from xdeploy.errors import UsageError, not_there
from xdeploy.recipe import Recipe


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of its own, with a few files to take for others."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "train.zip").touch()
    (tmp_path / "recipe.toml").write_text("[plan]\nformts = ['int4']\n")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = main([str(w) for w in words])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("biuld", ("unknown command 'biuld'", "build", "did you mean 'build'")),
        ("demo", ("unknown command 'demo'", "`xdeploy build` without MODEL builds the demo")),
        ("build --targt cortex-m4", ("build does not know --targt", "did you mean '--target'?")),
        ("build --xyzzy", ("does not know --xyzzy", "see `xdeploy build --help`")),
        ("build --max-drop much", ("--max-drop", "'much' is no number", "0.5")),
        ("build --epochs 1.5", ("--epochs", "'1.5' is no whole number")),
        ("build --flash 64Q", ("--flash", "'64Q' is no size", "64K")),
        ("build --set plan.formats=int9", ("'plan.formats' must be an array, got 'int9'", "formats = [...]")),
        ("build --set threads=many", ("'threads' must be an integer, got 'many'",)),
        ("build --formats int9,int4", ("'int9'", "allowed: c1s8", "did you mean")),
        ("build --target cortexm4", ("unknown target 'cortexm4'", "cortex-m55", "did you mean 'cortex-m4'")),
        ("build --target board.toml", ("target file board.toml does not exist", "did you mean")),
        ("build --recipe recip.toml", ("recipe recip.toml does not exist", "did you mean 'recipe.toml'?")),
        ("build --recipe recipe.toml", ("recipe.toml:2", "'formts'", "allowed: ", "did you mean 'formats'")),
        ("build net.onnx", ("net.onnx does not exist", "paths begin at the working folder")),
        ("build there/net.onnx", ("net.onnx does not exist: there is no folder there",)),
        ("build a.b:c --data trian.zip", ("trian.zip does not exist", "did you mean 'train.zip'?")),
        ("build --plan edited.json", ("edited.json does not exist",)),
        ("build -o file", ("output folder file cannot be written: it is a file", "with -o")),
        ("check train.zip", ("'train.zip' is no folder of a build", "package.module:factory")),
        ("bench nowhere", ("nowhere does not exist",)),
        ("bench .", ("is not the folder of a built target", "OUT/<target>")),
        ("completion tcsh", ("unknown shell 'tcsh' (choose from 'bash', 'zsh', 'fish')",)),
    ],
)
def test_what_is_said(words: str, parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, *words.split())
    assert code == 2, text
    assert text.startswith("error: ")
    assert "Errno" not in text
    for part in parts:
        assert part in text


def test_a_run_folder_instead_of_a_target(first: object, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """bench and run want one target; those that are there are named, and not the hidden ones."""
    out = kept.parent / "out"
    for words in (("bench", out), ("run", out, "--inputs", "x.npy", "-o", "y.npy")):
        code, text = said(capsys, *words)
        assert code == 2
        assert f"{out / 'cortex-m4'}" in text
        assert ".host" not in text
    code, text = said(capsys, "run", out / "cortex-m4", "--inputs", "x.npy", "-o", "y.npy")
    assert (code, "inputs x.npy does not exist" in text) == (2, True)


def test_data_of_the_wrong_shape(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file takes 3x8x8; both shapes are told. Then labels that are missing, and NaN."""
    x, y = np.zeros((20, 3, 9, 8), np.float32), np.arange(20) % 5
    np.savez("wrong.npz", x=x, y=y)
    np.savez("labels.npz", x=x)
    np.savez("nan.npz", x=np.full((20, 3, 8, 8), np.nan, np.float32), y=y)
    expected = {
        "wrong.npz": ("(3, 8, 8)", "(3, 9, 8)"), "labels.npz": ("y, labels, targets", "np.savez"),
        "nan.npz": ("NaN or infinity, first in sample 0", "leave such samples out"),
    }  # fmt: skip
    for name, parts in expected.items():
        code, text = said(capsys, "build", kept, "--target", "cortex-m4", "--test-data", name, "-o", "o")
        assert code == 2
        for part in (name, *parts):
            assert part in text


def test_budgets_of_a_file_that_is_kept_as_it_is(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is left out in silence: its weights are held to --flash, and what would compress it is refused."""
    words = ("build", kept, "--target", "cortex-m4", "-o", "o", "--quiet")
    needed = 8 * 3 * 9 + 8 * 8 + 512 * 5 + 8 * 5  # codes, then multiplier and bias of each channel
    for more in ((), ("--dry-run",)):
        code, text = said(capsys, *words, "--flash", needed - 1, *more)
        assert code == 4
        assert f"take {needed} bytes as they are; plan.flash allows {needed - 1}" in text
        assert "--further" in text
    assert said(capsys, *words, "--flash", needed, "--dry-run")[0] == 0
    code, text = said(capsys, *words, "--epochs", 3, "--formats", "int4", "--max-drop", 2)
    assert code == 2
    assert "nothing can honour plan.formats, recover.epochs\n" in text
    assert said(capsys, *words, "--ram", 8)[0] == 4
    assert not Path("o", "report.json").exists()


def test_flags_of_the_recipe_complain_in_words() -> None:
    """argparse's own complaints name Python's types."""
    assert not {kind for _, kind, _ in FLAGS.values()} & {int, float}


def test_no_type_of_pythons_is_told() -> None:
    wrong = {"seed": "x", "plan.max_drop": "x", "compress.further": 1, "relevance.method": 3, "plan.fixed": 3,
             "plan.whole": 3, "data.mean": "x"}  # fmt: skip
    words = ("an integer", "a float or", "true or false", "a string", "a table", "an array", "an array")
    for (key, value), word in zip(wrong.items(), words, strict=True):
        with pytest.raises(UsageError, match=word):
            Recipe().with_options({key: value})


def test_names_of_files_cannot_paint_the_terminal(folder: Path) -> None:
    (folder / "net\x1b[31m.onnx").touch()
    assert "\x1b" not in str(not_there(Path("nett.onnx")))
    assert "did you mean" not in str(not_there(folder / "entirely_else.zip"))
