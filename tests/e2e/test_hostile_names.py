"""Names and labels from a model never become code: in C, CMake, HTML, JSON, file names and messages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from tests.lower.qdq import Qdq
from xdeploy.builder.ctext import comment, string
from xdeploy.cli import main
from xdeploy.errors import shown
from xdeploy.formats import is_identifier
from xdeploy.program import identifier
from xdeploy.report import html as report_html
from xdeploy.report.markup import SCRIPT

NAMES = [
    '*/ system("x"); /*', "??/\n#include <x>", "a\nb\rc\x0bd\u2028e", 'q"u\'o`te', "back\\slash\\", "</script><script>",
    "<img src=x onerror=alert(1)>", "${CMAKE_SOURCE_DIR};]]==]", "$(rm -rf ~)", '{"json": [', "../../../escape",
    "/etc/passwd", "nul\0inside", "CON", "int", "while", "9lives", "", " ", "\u202egnp.exe", "\u200b\ufeff", "%s%n%x",
    "n" * 3000, "#define x", "//", "-->", "@import", "\x1b[31mred", "日本語", "a;b;c",
]  # fmt: skip
ASSEMBLY = re.compile(r"/\*.*?\*/|//[^\n]*|@[^\n]*", re.DOTALL)  # its comments
TOKEN = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)


def hostile_model(names: list[str], labels: list[str]) -> Any:
    """A convolution and a linear layer whose every name is taken from the list."""
    g = Qdq((2, 4, 4))
    g.conv(2, 2, at=g.q(at="x"))
    g.q()
    g.op("Relu", g.at)
    g.op("GlobalAveragePool", g.q())
    g.q()
    g.op("Flatten", g.at)
    g.op("Gemm", g.at, g.weight((3, 2)), g.bias(3), transB=1)
    g.q()
    model = g.model()
    table: dict[str, str] = {"": ""}

    def new(name: str) -> str:
        """Tensors' names must stay different from each other, and not be empty."""
        return table.setdefault(
            name, f"{names[len(table) % len(names)]}{'' if len(table) < len(names) else len(table)}" or "?"
        )

    for k, node in enumerate(model.graph.node):
        node.name = names[k % len(names)]
        for place in (node.input, node.output):
            renamed = [new(n) for n in place]
            del place[:]
            place.extend(renamed)
        node.metadata_props.add(key="origin", value=names[-1 - k % len(names)])
    for value in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        value.name = new(value.name)
    model.graph.name, model.graph.doc_string, model.producer_name = names[0], names[1], names[5]
    helper.set_model_props(model, {"xdeploy.io": json.dumps({"labels": labels}), names[0]: names[1]})
    return model


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the hostile model, for a library and for firmware."""
    folder = tmp_path_factory.mktemp("names")
    path = folder / "*${x};$(id)\"'<b>\u202e.onnx"
    onnx.save(hostile_model(NAMES, ["</script><script>alert(1)</script>", '*/ "??/\n', NAMES[7]]), path)
    code = main(
        ["build", str(path), "--target", "x86-64", "--target", "cortex-m4", "-o", str(folder / "out"), "--quiet"]
    )
    assert code == 0
    return folder / "out"


def c_files(built: Path) -> list[Path]:
    found = [p for kind in ("*.c", "*.h", "*.S") for p in built.rglob(kind)]
    assert len(found) >= 10
    return found


def test_files_stay_inside_and_have_plain_names(built: Path) -> None:
    assert sorted(p.name for p in built.parent.iterdir() if p.suffix != ".onnx") == ["out"]
    for path in built.rglob("*"):
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", path.name), path
        assert not path.is_symlink()


def test_c_holds_only_plain_identifiers(built: Path) -> None:
    for path in c_files(built):
        text = path.read_text(encoding="utf-8")
        assert text.isascii(), path
        assert all(c.isprintable() or c in "\n\t" for c in text), path
        assert "??" not in text, path
        bare = (
            TOKEN.sub(" ", text)
            if path.suffix != ".S"
            else re.sub(r"/\*.*?\*/|//[^\n]*|@[^\n]*", " ", text, flags=re.DOTALL)
        )
        assert "/*" not in bare, path
        assert "*/" not in bare, path
        assert not re.search(r"\\(?!\n)", bare) or path.suffix == ".S", path
        for word in ("system", "include <x>", "onerror", "CMAKE", "passwd", "rm -rf"):
            assert word not in bare, (path, word)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_c_compiles_with_trigraphs(built: Path, tmp_path: Path) -> None:
    sources = sorted((built / "x86-64" / "src").glob("*.c"))
    assert sources
    include, output = str(built / "x86-64" / "include"), str(tmp_path / "x.o")
    flags = ["-std=c99", "-trigraphs", "-pedantic", "-Wall", "-Wextra", "-Wcomment", "-Werror"]
    for source in sources:
        command = ["gcc", *flags, "-I", include, "-c", str(source), "-o", output]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


class Tags(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        self.attributes |= {name for name, _ in attrs}


def tags(text: str) -> Tags:
    parser = Tags()
    parser.feed(text)
    parser.close()
    return parser


def test_html_has_our_elements_only(built: Path) -> None:
    text = (built / "report.html").read_text(encoding="utf-8")
    sources = "".join(p.read_text() for p in Path(report_html.__file__).parent.glob("*.py"))
    ours = set(re.findall(r"<([a-z][a-z0-9]*)", sources)) | {"g", "path", "text", "tspan", "rect"}
    assert text.count("<script") == text.count(f"<script>{SCRIPT}</script>") == 1
    text = text.replace(f"<script>{SCRIPT}</script>", "")  # the page's own, which its policy knows by hash
    page = tags(text)
    assert page.found <= ours | {"html", "head", "body"}
    assert "script" not in page.found
    assert "img" not in page.found
    assert not {a for a in page.attributes if a.startswith("on")}
    assert not re.search(r"(src|href)\s*=", text)
    assert "\u202e" not in text


def test_json_loads(built: Path) -> None:
    files = list(built.rglob("*.json"))
    assert len(files) >= 6
    for path in files:
        json.loads(path.read_text(encoding="utf-8"))


def test_build_files_hold_plain_words(built: Path) -> None:
    """CMake, Kconfig, YAML, properties, pack description: comments apart, no character that came from a name."""
    patterns = ("CMakeLists.txt", "Kconfig", "*.yml", "library.properties", "*.pdsc")
    files = [p for pattern in patterns for p in built.rglob(pattern)]
    assert len(files) >= 8
    for path in files:
        whole = path.read_text(encoding="utf-8")
        assert whole.isascii(), path
        text = re.sub(r"<!--.*?-->" if path.suffix == ".pdsc" else r"#[^\n]*", "", whole, flags=re.DOTALL)
        if path.name == "library.properties":  # plain text behind a key; nothing in it is interpreted
            assert all(re.match(r"[a-z]+=", line) for line in text.splitlines())
            continue
        for word in ("x};", "$(", "rm -rf", "</script>", "onerror", "]]==]", "passwd", "`"):
            assert word not in text, (path, word)
        for variable in re.findall(r"\$\{([^}]*)\}", text):
            assert re.fullmatch(r"[A-Z_]+|[a-z_]+", variable), (path, variable)
        if path.name == "CMakeLists.txt":
            ours = text.replace(" @ONLY)", ")")  # CMake's own keyword, in the template
            assert re.fullmatch(r"[A-Za-z0-9_./ ()\n$,{}:\"=<>\[\]+-]*", ours), path


def test_self_test_passes(built: Path) -> None:
    for target in ("x86-64", "cortex-m4"):
        bench = json.loads((built / target / "bench.json").read_text())
        assert bench["verdict"] in ("exact", "bit-exact"), bench["verdict"]


@pytest.mark.parametrize("name", [*NAMES, "x;rm", "../up", "a b", "1st", "${x}", "é", "a-b"])
def test_model_names_become_identifiers(name: str) -> None:
    """The stem of every file and symbol, from a file's name or the recipe's `package.name`."""
    assert is_identifier(f"xd_{identifier(name)}"[:63])
    assert len(identifier(name)) <= 60


@pytest.mark.parametrize("name", NAMES)
def test_text_is_safe_everywhere(name: str) -> None:
    safe = comment(name)
    assert safe.isascii()
    assert safe.isprintable()
    assert not re.search(r"\*/|/\*|\?\?|\\", safe)
    literal = string(name)
    assert re.fullmatch(r'"(?:[^"\\\x00-\x1f\x7f-\uffff?]|\\[0-7]{3})*"', literal)
    for quote in (True, False):
        message = shown(name, quote=quote)
        assert message.isprintable()
        assert len(message) <= 80 * 10
