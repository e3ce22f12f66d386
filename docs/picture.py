"""Draws docs/chain.svg, the README's picture, from a finished run: every figure in it is of that run's report.json.

    xdeploy build --target cortex-m4 -o out
    python docs/picture.py out

The figures lie in the picture as JSON too, so that it can be drawn again from itself: `python docs/picture.py`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any

PLACE = Path(__file__).with_name("chain.svg")
WIDTH, ROW, TOP = 900, 22, 176
_STYLE = """
.paper { fill: #ffffff; stroke: #d0d7de; } .box { fill: #f6f8fa; stroke: #d0d7de; } text { font-family: system-ui,
-apple-system, "Segoe UI", sans-serif; fill: #1b1f24; font-size: 12px; } .head { font-weight: 600; font-size: 13px; }
.big { font-weight: 600; font-size: 16px; } .small { fill: #57606a; font-size: 11px; } .mono { font-family:
ui-monospace, monospace; } .arrow { stroke: #57606a; stroke-width: 1.5; fill: none; } .rel { fill: #c2570c; }
.old { fill: #b9c2cc; } .new { fill: #0072b2; } @media (prefers-color-scheme: dark) { .paper { fill: #0f1419; stroke:
#3a424c; } .box { fill: #1a2129; stroke: #3a424c; } text { fill: #e6edf3; } .small { fill: #9aa7b4; } .arrow { stroke:
#9aa7b4; } .rel { fill: #f09a4a; } .old { fill: #4b5661; } .new { fill: #58a6e0; } }
"""


def figures(report: Mapping[str, Any], target: str) -> dict[str, Any]:
    """What the picture tells, of a report.json.

    Args:
        report: of a run that scored and compressed.
        target: one of its targets, with counted instructions.

    Returns:
        JSON data: `network`, `target`, `float` and `deployed` accuracy in percent and `samples`, `before`, `packed`,
        `coded`, `flash`, `ram` in bytes, `instructions`, `method`, `verdict`, and `layers`: rows of name, share of the
        relevance, weight format, bytes in float32, bytes packed.
    """
    at, accuracy, weights = report["targets"][target], report["accuracy"], report["weights"]
    rows = [
        [x["origin"], round(x["relevance_share"], 4), x["weight_format"], 4 * x["weights"], x["bytes"]]
        for x in report["layers"]
        if x["weight_format"]
    ]
    return {
        "network": report["model"]["name"], "target": target, "method": report["relevance"]["method"],
        "float": round(accuracy["float"]["value"], 2), "deployed": round(accuracy["deployed"]["value"], 2),
        "samples": accuracy["deployed"]["n"], "before": report["model"]["float_bytes"]["value"],
        "packed": weights["packed_bytes"]["value"], "coded": weights["coded_bytes"]["value"],
        "flash": at["flash"]["value"], "ram": at["ram"]["value"], "instructions": at["instructions"]["value"],
        "verdict": at["verdict"], "layers": rows,
    }  # fmt: skip


def render(f: Mapping[str, Any]) -> str:
    """The picture as SVG: the steps with what each gave, and below them every layer, from relevance to bytes."""
    height = TOP + ROW * len(f["layers"]) + 34
    told = (
        f"From a network to firmware, the bundled demo: {f['before']:,} bytes of float32 at {f['float']:.2f} percent "
        f"become {f['packed']:,} bytes at {f['deployed']:.2f} percent, in {f['flash']:,} bytes of flash on "
        f"{f['target']}."
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img"><title>{escape(told)}</title><metadata>{escape(json.dumps(f), quote=False)}</metadata>'
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        *_steps(f), *_layers(f), "</svg>",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _steps(f: Mapping[str, Any]) -> list[str]:
    ratio = f["before"] / f["packed"]
    boxes = [
        ("trained network", f"{f['before']:,} B", "weights in float32", f"{f['float']:.2f} % right, measured"),
        ("score, plan", f["method"].upper(), "relevance of each weight", "decides formats by layer"),
        ("compress", f"{f['packed']:,} B", f"1/{ratio:.1f} of that; measured", f"{f['coded']:,} B entropy-coded"),
        (f"build: {f['target']}", f"{f['flash']:,} B flash", f"{f['ram']:,} B RAM; measured",
         "C99, no malloc"),
        ("prove", f"{f['deployed']:.2f} % right", f"{f['samples']} samples, measured",
         f"{f['instructions']:,} instr., emulated"),
    ]  # fmt: skip
    parts, wide, gap = [], 156, 22
    for k, (head, big, *lines) in enumerate(boxes):
        x = 16 + k * (wide + gap)
        parts.append(f'<rect class="box" x="{x}" y="16" width="{wide}" height="96" rx="6"/>')
        parts.append(_text(x + 10, 36, head, "head") + _text(x + 10, 60, big, "big"))
        parts += [_text(x + 10, 80 + 18 * i, line, "small") for i, line in enumerate(lines)]
        if k:
            parts.append(f'<path class="arrow" d="M{x - gap + 3} 64h{gap - 8}m-5 -4l5 4l-5 4"/>')
    return parts


def _layers(f: Mapping[str, Any]) -> list[str]:
    rows: Sequence[Sequence[Any]] = f["layers"]
    share, size = max(r[1] for r in rows), max(r[3] for r in rows)
    parts = [
        _text(26, 146, "every layer", "head"), _text(246, 146, "share of the relevance", "head"),
        _text(424, 146, "weights", "head"), _text(510, 146, "bytes: float32 weights, packed with scales", "head"),
    ]  # fmt: skip
    for k, (name, relevance, kind, before, after) in enumerate(rows):
        y = TOP + k * ROW
        parts.append(_text(26, y, name, "mono"))
        parts.append(f'<rect class="rel" x="246" y="{y - 10}" width="{110 * relevance / share:.1f}" height="11"/>')
        parts.append(_text(246 + 110 * relevance / share + 6, y, f"{100 * relevance:.1f} %", "small"))
        parts.append(_text(424, y, kind, "mono"))
        for cls, value, up in (("old", before, 11), ("new", after, 5)):
            parts.append(
                f'<rect class="{cls}" x="510" y="{y - up}" width="{max(200 * value / size, 1):.1f}" height="6"/>'
            )
        parts.append(_text(510 + 200 * before / size + 8, y, f"{before:,} → {after:,}", "small"))
    end = f"the bundled demo ({f['network']}); outputs on {f['target']} {f['verdict']} with the reference"
    return [*parts, _text(26, TOP + ROW * len(rows) + 12, end, "small")]


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" class="{kind}">{escape(str(text))}</text>'


def figures_of(picture: str) -> dict[str, Any]:
    """The figures that lie in a picture."""
    found = re.search(r"<metadata>(.*?)</metadata>", picture, re.DOTALL)
    if found is None:
        raise SystemExit("the picture holds no figures: give a run folder")
    value: dict[str, Any] = json.loads(unescape(found[1]))
    return value


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="run folder of the demo; none: the picture's own figures")
    parser.add_argument("--target", default="cortex-m4")
    parser.add_argument("-o", "--output", type=Path, default=PLACE)
    args = parser.parse_args()
    if args.run is None:
        found = figures_of(PLACE.read_text(encoding="utf-8"))
    else:
        report = json.loads((args.run / "report.json").read_text(encoding="utf-8"))
        found = figures(report, args.target)
    args.output.write_text(render(found), encoding="utf-8")


if __name__ == "__main__":
    main()
