"""The report's charts of what the run measured; matplotlib is loaded when the first one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xdeploy.report.svg import BAD, INK, LINE, MUTE, PAPER, SERIES, TIP, WIDTH, axes, drawing, inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW = 0.36  # inches of a bar and the space to the next
_LETTER = 0.074  # inches of a letter of the axis labels, about
Dot = tuple[float, float, str]  # x, y, name
Line = tuple[float, float, float]  # a line of text: from, to, height, in points
_NAMED = 12  # dots of a scatter that are named at most


@dataclass(frozen=True, slots=True)
class Stair:
    """One line of the waterfall: bytes and accuracy in percent before and after; None where unknown."""

    label: str
    bytes: tuple[float, float] | None
    accuracy: tuple[float, float] | None


def stairs(report: Mapping[str, Any]) -> list[Stair]:
    """What each step bought: the float network, the steps in order, and the coding of the stored file."""
    steps = report["steps"]
    if not steps:
        return []
    sized = all("bytes_after" in s for s in steps)
    first = steps[0]
    rows = [Stair("float32", (0, first["bytes_before"]) if sized else None, None)]
    rows += [
        Stair(
            s["step"],
            (s["bytes_before"], s["bytes_after"]) if sized else None,
            (s["accuracy_before"], s["accuracy_after"]),
        )
        for s in steps
    ]
    coded = report["weights"]["coded_bytes"]
    if sized and coded:
        rows.append(Stair("coded file", (steps[-1]["bytes_after"], coded["value"]), None))
    return rows


def waterfall(rows: Sequence[Stair], told: str) -> str:
    """Bars of bytes, and beside them bars of points of accuracy, one line per step."""
    with drawing():
        made, left = axes(0.75 + _ROW * len(rows), left=0.85)
        wide = WIDTH - 1.0
        base, high = left.get_position().y0, left.get_position().height
        sized = any(r.bytes for r in rows)
        share = 0.56 if sized else 0.0
        points = made.add_axes(((0.85 + wide * (share + 0.06)) / WIDTH, base, wide * (0.94 - share) / WIDTH, high))
        left.set_position((0.85 / WIDTH, base, wide * max(share, 0.001) / WIDTH, high))
        if sized:
            _bytes(left, rows)
        else:
            left.set_xticks([])
        for ax in (left, points):
            ax.set_ylim(len(rows) - 0.4, -0.6)
            ax.tick_params(axis="y", length=0)
        left.set_yticks(range(len(rows)), [_short(r.label, 12) for r in rows])
        points.set_yticks([])
        _points(points, rows)
        return inline(made, told)


def _bytes(ax: Axes, rows: Sequence[Stair]) -> None:
    most = max(max(r.bytes) for r in rows if r.bytes)
    for y, row in enumerate(rows):
        if not row.bytes:
            continue
        before, after = row.bytes
        total = not y
        colour = MUTE if total else BAD if after > before else SERIES[0]
        (bar,) = ax.barh(y, abs(after - before), 0.6, left=min(before, after), color=colour)
        bar.set_gid(f"{TIP}{row.label}: {before:,.0f} to {after:,.0f} B")
        ax.plot([after, after], [y - 0.3, min(y + 1.3, len(rows) - 0.7)], color=MUTE, linewidth=0.7)
        text = f"{after:,.0f} B" if total or after == before else f"{after:,.0f} B ({_change(before, after)})"
        start, end = min(before, after), max(before, after)
        if end - start > 0.5 * most:
            ax.text(end - 0.02 * most, y, text, va="center", ha="right", fontsize=8.5, color=PAPER)
        elif end > 0.5 * most and start > 0.5 * most:
            ax.text(start - 0.03 * most, y, text, va="center", ha="right", fontsize=8.5)
        else:
            ax.text(end + 0.03 * most, y, text, va="center", fontsize=8.5)
    ax.set_xlim(0, 1.04 * most)
    ax.set_xlabel("bytes of the parameters")
    _plain_ticks(ax, "x")


def _change(before: float, after: float) -> str:
    return f"{100 * (after - before) / before:+.0f} %".replace("-", "−") if before else ""


def _points(ax: Axes, rows: Sequence[Stair]) -> None:
    found = [v for r in rows if r.accuracy for v in r.accuracy]
    low, high = min(found), max(found)
    span = max(high - low, 0.5)
    ends = [low - 0.15 * span, high + 0.15 * span]
    for y, row in enumerate(rows):
        if row.accuracy is None:
            continue
        before, after = row.accuracy
        colour = BAD if after < before else SERIES[2]
        (bar,) = ax.barh(y, abs(after - before) or span / 150, 0.6, left=min(before, after), color=colour)
        bar.set_gid(f"{TIP}{row.label}: {before:.2f} to {after:.2f} %")
        right = min(before, after) - low < 0.5 * span and max(before, after) - low < 0.6 * span
        text = f"{after - before:+.2f}".replace("-", "−")
        where = (max(before, after) + 0.05 * span, "left") if right else (min(before, after) - 0.05 * span, "right")
        ax.text(where[0], y, text, va="center", ha=where[1], fontsize=8.5)
        ends.append(where[0] + (0.5 if right else -0.5) * span)  # room for the text
    ax.set_xlim(min(ends), max(ends))
    ax.set_xlabel("accuracy, % (points)")
    ax.xaxis.set_major_locator(_few(3))
    ax.grid(axis="x")


def _few(count: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count)


def _plain_ticks(ax: Axes, which: str) -> None:
    """Few ticks in bytes, kB and MB."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
    axis.set_minor_formatter(NullFormatter())
    if axis.get_scale() != "log":
        axis.set_major_locator(MaxNLocator(4))


def size(value: float) -> str:
    """Bytes, briefly: 512 B, 12.5 kB, 1.2 MB."""
    for limit, unit in ((1e6, "MB"), (1e3, "kB")):
        if abs(value) >= limit:
            return f"{value / limit:.4g} {unit}"
    return f"{value:.4g} B"


def bits(report: Mapping[str, Any]) -> str:
    """Each weighted layer's share of the relevance against its stored bits per weight; "" without relevance."""
    rows = [x for x in report["layers"] if x["weight_format"] and x["relevance_share"] is not None]
    rows = [x for x in rows if x["relevance_share"] > 0]
    if not rows:
        return ""
    with drawing():
        made, ax = axes(3.0, left=0.55)
        most, large = max(x["weights"] for x in rows), 12 if len(rows) <= 20 else 6
        for x in rows:
            (dot,) = ax.plot(
                100 * x["relevance_share"], 8 * x["bytes"] / x["weights"], "o", color=SERIES[0], alpha=0.55,
                markersize=4 + large * (x["weights"] / most) ** 0.5, markeredgecolor=INK, markeredgewidth=0.5,
            )  # fmt: skip
            dot.set_gid(
                f"{TIP}{x['origin']}: {100 * x['relevance_share']:.2f} % of the relevance, {x['weight_format']}"
            )
        values = [x["relevance_share"] for x in rows]
        if max(values) > 8 * min(values):
            ax.set_xscale("log")
        _percent_ticks(ax)
        ax.set_ylim(0, 1.12 * max(8 * x["bytes"] / x["weights"] for x in rows))
        ax.margins(x=0.12)
        ax.set(xlabel="share of the relevance, %", ylabel="stored bits per weight")
        ax.grid()
        named = sorted(rows, key=lambda x: -x["relevance_share"])[:_NAMED]
        at = {x["origin"]: (100 * x["relevance_share"], 8 * x["bytes"] / x["weights"], x["origin"]) for x in rows}
        named_dots(ax, [at[x["origin"]] for x in named], list(at.values()))
        told = "; ".join(f"{x['origin']}: {100 * x['relevance_share']:.1f} %, {x['weight_format']}" for x in named)
        return inline(made, f"Share of the relevance against stored bits per weight. {told}")


def _percent_ticks(ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    if ax.get_xscale() == "log":
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))


def named_dots(ax: Axes, dots: Sequence[Dot], others: Sequence[Dot] = ()) -> None:
    """Names beside dots, of those whose names would not lie on a dot, an earlier name or outside of the picture."""
    ax.autoscale_view()  # places are known once the limits are
    places = [ax.transData.transform((x, y)) * 72 / ax.figure.dpi for x, y, _ in others or dots]
    taken = [(float(x) - 4, float(x) + 4, float(y)) for x, y in places]
    wide = ax.get_position().width * WIDTH * 72
    left = ax.get_position().x0 * WIDTH * 72
    for x, y, name in dots:
        at = ax.transData.transform((x, y)) * 72 / ax.figure.dpi
        text = _short(name, 26)
        length = 5.0 * len(text)
        across, up = float(at[0]), float(at[1])
        fits = (s for s in _SIDES if _free(taken, across + s[1] + s[3] * length, length, up + s[2], left, left + wide))
        side = next(fits, None)
        if side is None:
            continue
        start = across + side[1] + side[3] * length
        taken.append((start, start + length, up + side[2]))
        ax.annotate(text, (x, y), side[1:3], textcoords="offset points", va="center", ha=side[0], fontsize=8.5)


# places of a name at its dot: alignment, points to the right and up, and how much of its length lies left of there
_SIDES = (("left", 9, 0, 0.0), ("right", -9, 0, -1.0), ("center", 0, 13, -0.5), ("center", 0, -13, -0.5))


def _free(taken: Sequence[Line], start: float, length: float, height: float, low: float, high: float) -> bool:
    """Whether a text fits there: inside low..high, and on nothing that is taken."""
    inside = low <= start and start + length <= high
    return inside and not any(abs(height - y) < 9 and start < b and a < start + length for a, b, y in taken)


def front(report: Mapping[str, Any]) -> str:
    """Accuracy against bytes of what this run measured; "" of fewer than two points."""
    points = report.get("points", [])
    if len(points) < 2:
        return ""
    with drawing():
        made, ax = axes(3.0, left=0.75, top=0.35)
        looks = {"validation": ("s", SERIES[1], "after each step (validation)"), "test": ("o", SERIES[0], "test")}
        for on, (marker, colour, label) in looks.items():
            own = [p for p in points if p["on"] == on]
            if own:
                line, face = ("-", PAPER) if on == "validation" else ("", colour)
                ax.plot(
                    [p["bytes"] for p in own], [p["accuracy"] for p in own], marker + line, color=colour, label=label,
                    markerfacecolor=face, markersize=6, linewidth=0.8,
                )  # fmt: skip
        ax.set_xscale("log")
        ax.margins(0.14, 0.16)
        _log_bytes(ax)
        ax.set(xlabel="bytes of the parameters", ylabel="accuracy, %")
        ax.grid()
        order = sorted(points, key=lambda p: p["on"] != "test")
        named_dots(ax, [(p["bytes"], p["accuracy"], p["label"]) for p in order])
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0, handletextpad=0.3)
        told = "; ".join(f"{p['label']} ({p['on']}): {p['bytes']:,.0f} B, {p['accuracy']:.2f} %" for p in points)
        return inline(made, f"Accuracy against bytes. {told}")


def sweep(found: Mapping[str, Any]) -> str:
    """A sweep's trials of this run's target by what its front says: accuracy against flash, this run among them."""
    rows = found["trials"]
    with drawing():
        made, ax = axes(3.0, left=0.75, top=0.35)
        best = sorted((r for r in rows if r["on_front"]), key=lambda r: r["bytes"])
        rest = [r for r in rows if not r["on_front"]]
        looks = ((rest, "o", MUTE, "other trials"), (best, "o-", SERIES[0], "front"))
        for group, marker, colour, label in looks:
            if group:
                xs, ys = [r["bytes"] for r in group], [r["accuracy"] for r in group]
                ax.plot(xs, ys, marker, color=colour, markersize=4, linewidth=0.8, label=label)
        own = [r for r in rows if r["this"]]
        if own:
            ax.plot(own[0]["bytes"], own[0]["accuracy"], "o", color=SERIES[1], markersize=8, label="this run")
        ax.margins(0.1, 0.15)
        _plain_ticks(ax, "x")
        ax.set(xlabel=found["of"], ylabel="validation accuracy, %")
        ax.grid()
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0, handletextpad=0.3)
        return inline(made, f"Front of the sweep: {len(best)} of {len(rows)} trials of {found['target']}")


def _log_bytes(ax: Axes) -> None:
    from matplotlib.ticker import LogLocator

    _plain_ticks(ax, "x")
    low, high = ax.get_xlim()
    wide = high > 60 * low
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 500 * low else (1.0, 3.0) if wide else (1.0, 2.0, 5.0)))


def arena(memory: Mapping[str, Any], target: str) -> str:
    """Buffers of the arena as boxes: from their first step to their last, at their offsets."""
    steps, buffers = memory["steps"], memory["buffers"]
    if not buffers:
        return ""
    with drawing():
        made, ax = axes(3.2, left=0.7)
        inner = ax.get_position()
        across = inner.width * WIDTH * 72 / (len(steps) + 1)
        down = inner.height * 3.2 * 72 / (1.05 * memory["bytes"])
        tensors = [b["name"] for b in buffers if not b["name"].startswith("@")]
        for b in buffers:
            _box(ax, b, tensors, across, down)
        ax.axhline(memory["bytes"], color=INK, linewidth=0.9)
        ax.set_xlim(0.5, len(steps) + 1.5)
        ax.set_ylim(0, 1.05 * memory["bytes"])
        ax.xaxis.set_major_locator(_whole())
        _plain_ticks(ax, "y")
        ax.set(xlabel="step of an inference", ylabel="offset in the arena")
        told = f"Arena of {target}: {memory['bytes']:,} bytes over {len(steps)} steps, {len(buffers)} buffers"
        return inline(made, told)


def _whole() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(8, integer=True)


def _box(ax: Axes, buffer: Mapping[str, Any], tensors: Sequence[str], across: float, down: float) -> None:
    name, first, last = buffer["name"], buffer["first"] + 1, buffer["last"] + 1
    scratch = name.startswith("@")
    colour = LINE if scratch else SERIES[tensors.index(name) % len(SERIES)]
    (box,) = ax.bar(
        first - 0.5, buffer["bytes"], last - first + 1, bottom=buffer["offset"], align="edge", color=colour,
        alpha=0.9 if scratch else 0.55, edgecolor=MUTE, linewidth=0.5,
    )  # fmt: skip
    kind = f"workspace of {name[1:]}" if scratch else name
    box.set_gid(f"{TIP}{kind}: {buffer['bytes']:,} B at {buffer['offset']:,}, steps {first} to {last}")
    letters = int((last - first + 1) * across / 4.8)
    if buffer["bytes"] * down > 9 and letters >= (9 if scratch else 5):
        text = _short("workspace" if scratch else name, letters)
        at = (first + (last - first) / 2, buffer["offset"] + buffer["bytes"] / 2)
        ax.text(*at, text, ha="center", va="center", fontsize=8)


def _short(text: str, length: int) -> str:
    """A name for a picture: only characters that can be seen, shortened in the middle."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    head = (length - 1) // 2
    return shown if len(shown) <= length else f"{shown[:head]}…{shown[head + 1 - length :]}"
