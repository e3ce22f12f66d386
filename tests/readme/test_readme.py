"""Every command of README is typed in here, in a folder with small files under the names that README uses."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import xdeploy
from tests.readme import standin
from tests.readme.reading import README, ROOT, Block, blocks, flags, links, real_build, spans
from tests.readme.typing_in import QUICK, ROWS, type_in
from xdeploy import cli, pipeline
from xdeploy.errors import XdeployError
from xdeploy.handover import Artifact
from xdeploy.recipe import Recipe, load_recipe

TEXT = README.read_text(encoding="utf-8")
ALL = blocks(TEXT)
SHELL = [b for b in ALL if b.kind == "sh"]
# blocks with a command that takes more than a few seconds
SLOW = (
    r"xdeploy build --target arm -o out",  # trains the demo; the project's check runs it in a fresh environment
    r"xdeploy sweep ",
    r"xdeploy doctor",  # compiles and runs code for every target
    r"xdeploy bench out/x86-64 --compare",
    r"(python|torchrun) .*(examples|benchmarks)/",
)
FILES = (".json", ".html", ".npz", ".md", ".toml", ".py")  # what ends so is no recipe key


def cases() -> list[object]:
    """A test per block whose commands were not there before; with slow ones a second test that has those too."""
    found, seen = [], set()
    for block in SHELL:
        if not set(block.lines) <= seen:
            slow = tuple(c for c in block.lines if any(re.search(p, c) for p in SLOW))
            quick = tuple(c for c in block.lines if c not in slow)
            found += [pytest.param(quick, id=block.name)] if quick else []
            found += [pytest.param(block.lines, id=f"{block.name}-all", marks=pytest.mark.slow)] if slow else []
        seen |= set(block.lines)
    return found


@pytest.mark.parametrize("commands", cases())
def test_commands_run(commands: tuple[str, ...], workspace: Path, with_run: Callable[[], Path]) -> None:
    made = any(re.search(r"(-o|--output) out(\s|$)", c) for c in commands)
    if real_build() in commands or (not made and any(re.search(r"\b(out|before)\b", c) for c in commands)):
        with_run()
    for command in commands:
        if command != real_build():  # that run is of this command
            type_in(command, workspace)


def test_there_are_commands_and_every_row_is_used() -> None:
    commands = [p for b in SHELL for c in b.lines for p in re.split(r"\s&&\s", c)]
    assert len(commands) > 25
    unused = [r.pattern for r in ROWS if not any(re.match(r.pattern, c) for c in commands)]
    assert not unused, f"rows for commands that README no longer has: {unused}"


def test_an_unknown_command_fails(workspace: Path) -> None:
    for command in ("cargo build", "xdeploy build net.onnx --no-such-flag", "xdeploy bench nowhere", "python -m thing"):
        with pytest.raises((pytest.fail.Exception, XdeployError, AssertionError)):
            type_in(command, workspace)


def test_the_first_two_blocks_are_the_two_commands() -> None:
    """The project's check and other tools take them from there."""
    first, second = [b for b in SHELL if TEXT.splitlines()[b.line - 1] == "```sh"][:2]
    assert first.lines[-1].startswith("xdeploy build ")
    assert second.lines[-1] == "pytest"


@pytest.mark.parametrize("block", [b for b in ALL if b.kind == "toml"], ids=lambda b: b.name)
def test_recipes_are_recipes(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(block.lines[0])
    assert load_recipe(path) != Recipe()


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in ALL if b.kind == "python"], ids=lambda b: b.name)
def test_python_runs(block: Block, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reader's own network as `module`."""
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(pipeline, "Recipe", lambda: Recipe().with_options(QUICK))
    names = {"xdeploy": xdeploy, "module": standin.labelled()[0], "torch": torch}
    exec(compile(block.lines[0], str(README), "exec"), names)
    for name, value in names.items():
        if name == "artifact":
            assert isinstance(value, Artifact)
            assert (value.folder / "manifest.json").is_file()


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Flags of a parser and of its sub-commands."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {o for p in action.choices.values() for o in options_of(p)}
    return found


def test_flags_in_the_text_exist() -> None:
    unknown = flags(TEXT) - options_of(cli.parser())
    assert not unknown, f"README names flags that no command has: {sorted(unknown)}"


def test_recipe_keys_in_the_text_exist() -> None:
    sections = {s: part for s, part in Recipe().to_dict().items() if isinstance(part, dict)}
    pattern = rf"(?<![\w/.])((?:{'|'.join(sections)})\.[a-z_]+)(?![\w./])"
    keys = {k for s in spans(TEXT) for k in re.findall(pattern, s) if not k.endswith(FILES)}
    assert len(keys) > 4
    assert keys <= {f"{s}.{k}" for s, part in sections.items() for k in part}


def test_links_lead_somewhere() -> None:
    missing = sorted(x for x in links(TEXT) if not (ROOT / x).exists())
    assert not missing, f"README links to what is not there: {missing}"


def test_blocks_are_told_apart() -> None:
    text = "\n".join(
        ["Text with `xdeploy ops` and `--flag`.", "", "    xdeploy a b \\", "        --c d", "", "- list", "",
         "```toml", "[plan]", "```", "", "```", "said", "```"]
    )  # fmt: skip
    found = [SimpleNamespace(kind=b.kind, lines=b.lines) for b in blocks(text)]
    assert [(b.kind, b.lines) for b in found] == [
        ("sh", ("xdeploy ops",)), ("sh", ("xdeploy a b --c d",)), ("toml", ("[plan]\n",)), ("text", ("said\n",)),
    ]  # fmt: skip
