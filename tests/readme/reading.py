"""What a README tells its reader to type: blocks of commands, commands in running text, recipes, Python."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
# first words of commands, in indented blocks and in running text; in a fenced `sh` block every line is one
PROGRAMS = re.compile(
    r"(?:xdeploy|pip3?|python3?|pytest|torchrun|git|cmake|ssh|scp|cd|mkdir|cp|rm|source|export|qemu-[\w-]+)(?=\s)"
)


@dataclass(frozen=True)
class Block:
    """Lines that belong together. kind: sh | toml | python | text; line: where in the file it begins."""

    kind: str
    line: int
    lines: tuple[str, ...]

    @property
    def name(self) -> str:
        """The id of its test: words of its first line, without what file systems and shells dislike."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", " ".join(self.lines[0].split()[:4])).strip("-")


def blocks(text: str) -> list[Block]:
    """All of a file, in order; the commands in a paragraph's running text are one block of kind sh."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    return [block for token in tokens for block in _blocks(token)]


def real_build() -> str:
    """README's own build of a real model; most of its other commands go on from that run."""
    commands = (c for b in blocks(README.read_text(encoding="utf-8")) for c in b.lines)
    return next(c for c in commands if c.startswith("xdeploy build xdeploy.model"))


def _blocks(token: Token) -> Iterator[Block]:
    line = (token.map or [0])[0] + 1
    if token.type in ("fence", "code_block"):
        yield _code(token.info.strip(), token.content, line)
    elif token.type == "inline":
        spans = [" ".join(c.content.split()) for c in token.children or [] if c.type == "code_inline"]
        commands = tuple(s for s in spans if PROGRAMS.match(s))
        if commands:
            yield Block("sh", line, commands)


def _code(language: str, content: str, line: int) -> Block:
    lines = joined(content)
    if language in ("sh", "toml", "python"):
        return Block(language, line, tuple(lines) if language == "sh" else (content,))
    if any(PROGRAMS.match(x) for x in lines):
        return Block("sh", line, tuple(lines))
    if _is_toml(content):
        return Block("toml", line, (content,))
    return Block("python" if _is_python(content) else "text", line, (content,))


def joined(content: str) -> list[str]:
    """Lines that are not empty or comments, continued ones as one."""
    whole = re.sub(r"\\\n\s*", "", content)
    return [x.strip() for x in whole.splitlines() if x.strip() and not x.strip().startswith("#")]


def _is_toml(content: str) -> bool:
    try:
        return bool(tomllib.loads(content))
    except tomllib.TOMLDecodeError:
        return False


def _is_python(content: str) -> bool:
    try:
        return any(isinstance(x, ast.Import | ast.ImportFrom | ast.Assign) for x in ast.parse(content).body)
    except SyntaxError:
        return False


def spans(text: str) -> list[str]:
    """Code in running text."""
    children = [c for t in MarkdownIt("commonmark").enable("table").parse(text) for c in t.children or []]
    return [c.content for c in children if c.type == "code_inline"]


def flags(text: str) -> set[str]:
    """Every `--flag` in running text, but those of other programs, as far as they reach."""
    ours = [re.sub(r"^(?:torchrun|python3? -m tvm)\b.*?(?= xdeploy |$)", "", s, flags=re.DOTALL) for s in spans(text)]
    return {f for s in ours for f in re.findall(r"(?<!\S)--[a-z][\w-]*", s)}


def links(text: str) -> set[str]:
    """Targets of links into the project."""
    found = [c for t in MarkdownIt("commonmark").enable("table").parse(text) for c in t.children or []]
    hrefs = [str(c.attrs.get("href") or c.attrs.get("src")) for c in found if c.type in ("link_open", "image")]
    return {h.partition("#")[0] for h in hrefs if "://" not in h and not h.startswith("#")}
