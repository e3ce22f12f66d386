"""What must not stand in the program: calls that run code found in data."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "xdeploy").rglob("*.py"), *(ROOT / "kernels").glob("*.py")])
# between this program and the processes that it starts to measure, over their own pipes: never from a file
PIPES = {"xdeploy/tune/worker.py", "xdeploy/tune/__main__.py"}
# what stands in the texts that kernels' own rows write, and TVM would evaluate otherwise; without Python's own names
TEXTS = {"xdeploy/builder/script.py"}
_BANNED = {
    "eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "cPickle.load", "marshal.load", "marshal.loads",
    "shelve.open", "joblib.load", "dill.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system",
    "os.popen", "torch.jit.load", "torch.hub.load",
}  # fmt: skip


def found(source: str) -> list[str]:
    """The calls in a Python text that are not allowed."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        flags = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name in _BANNED:
            names.append(name)
        elif name == "torch.load" and flags.get("weights_only") != "True":
            names.append("torch.load without weights_only=True")
        elif flags.get("allow_pickle", "False") != "False":
            names.append("allow_pickle")
        elif name in ("np.load", "numpy.load") and "allow_pickle" not in flags:
            names.append("np.load without allow_pickle=False")
        elif flags.get("shell", "False") != "False":
            names.append("shell")
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_runs_code_from_data(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    allowed = {"pickle.load"} if name in PIPES else {"eval", "exec"} if name in TEXTS else set()
    assert set(found(path.read_text())) <= allowed


@pytest.mark.parametrize(
    "text",
    ["eval('1')", "import pickle\npickle.load(f)", "torch.load(p)", "torch.load(p, weights_only=False)", "yaml.load(t)",
     "np.load(p)", "np.load(p, allow_pickle=True)", "subprocess.run(c, shell=True)", "os.system(c)"],
)  # fmt: skip
def test_the_search_finds_it(text: str) -> None:
    assert found(text)
