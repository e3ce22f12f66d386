"""Completion scripts, tried in real shells where they are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from xdeploy.cli import main
from xdeploy.target import FAMILIES, target_names

pytest.importorskip("shtab")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    with pytest.MonkeyPatch.context() as patch:
        for shell in ("bash", "zsh", "fish"):
            said: list[str] = []
            patch.setattr("xdeploy.commands.setting.say", said.append)
            assert main(["completion", shell]) == 0
            (folder / ("_xdeploy" if shell == "zsh" else f"x.{shell}")).write_text(said[0])
    return folder


def bash(scripts: Path, words: list[str], folder: Path) -> set[str]:
    """What bash itself offers for the last word."""
    quoted = " ".join(f"'{w}'" for w in words)
    text = f"""
source '{scripts}/x.bash'
COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMP_LINE='{" ".join(words)}'; COMP_POINT=${{#COMP_LINE}}
how=$(complete -p xdeploy); function=${{how##*-F }}; function=${{function%% *}}
$function xdeploy '{words[-1]}' '{words[-2]}'
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "--norc", "-c", text], capture_output=True, text=True, cwd=folder, check=False)
    return set(done.stdout.split())


def fish(scripts: Path, line: str, folder: Path) -> set[str]:
    text = f"source '{scripts}/x.fish'; complete -C '{line}'"
    done = subprocess.run(["fish", "--no-config", "-c", text], capture_output=True, text=True, cwd=folder, check=True)
    return {x.split("\t")[0] for x in done.stdout.splitlines()}


def test_bash_knows_commands_flags_and_names(scripts, tmp_path):
    (tmp_path / "data.npz").touch()
    (tmp_path / "folder").mkdir()
    assert {"build", "init", "doctor", "completion"} <= bash(scripts, ["xdeploy", ""], tmp_path)
    assert bash(scripts, ["xdeploy", "doc"], tmp_path) == {"doctor"}
    assert {"--target", "--dry-run", "--flash"} <= bash(scripts, ["xdeploy", "build", "--"], tmp_path)
    assert bash(scripts, ["xdeploy", "build", "--target", ""], tmp_path) == {*target_names(), *FAMILIES}
    assert bash(scripts, ["xdeploy", "build", "--tune", "q"], tmp_path) == {"quick"}
    assert "data.npz" in bash(scripts, ["xdeploy", "build", "--data", ""], tmp_path)
    assert bash(scripts, ["xdeploy", "build", "-o", "fo"], tmp_path) <= {"folder", "folder/"}


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_knows_commands_flags_and_names(scripts, tmp_path):
    assert {"build", "init", "doctor"} <= fish(scripts, "xdeploy ", tmp_path)
    assert {"cortex-m4", "arm"} <= fish(scripts, "xdeploy build --target ", tmp_path)
    assert {"quick", "full"} <= fish(scripts, "xdeploy build --tune ", tmp_path)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_takes_the_script(scripts, tmp_path):
    """Its completion system finds the function by the script's first line; offering words needs a keyboard."""
    text = f"fpath=('{scripts}' $fpath); autoload -U compinit; compinit -u -d '{tmp_path}/dump'; print $_comps[xdeploy]"
    done = subprocess.run(["zsh", "-f", "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "_xdeploy"
    subprocess.run(["zsh", "-n", str(scripts / "_xdeploy")], check=True)


def test_another_shell_is_refused(capsys):
    assert main(["completion", "cmd"]) == 2
    assert "fish" in capsys.readouterr().err
