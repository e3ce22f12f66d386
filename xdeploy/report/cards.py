"""The headline: a card for each number, before and after, with how it was obtained and its error bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xdeploy.report.markup import escape

Quantity = Mapping[str, Any]
_SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "J": ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"), (1e-9, "nJ")),
}
_OF_TARGET = {
    "flash": "flash", "ram": "RAM", "stack": "stack", "instructions": "instructions", "cycles": "cycles",
    "latency": "latency", "latency_two_threads": "latency, two threads",
    "ratio_two_threads": "two threads over one", "energy": "energy",
}  # fmt: skip
_UNITS = {"byte": "B", "instruction": "", "cycle": "", "1": ""}


def amount(quantity: Quantity) -> str:
    """A quantity's value in a unit that keeps it short, with its unit."""
    return _written(float(quantity["value"]), *_scale(quantity))


def error_bar(quantity: Quantity) -> str:
    """Its bounds, "" where there are none or both are the value itself."""
    low, high = quantity.get("low"), quantity.get("high")
    if low is None or high is None or low == high:
        return ""
    factor, unit = _scale(quantity)
    return f"{_written(low, factor, '')} to {_written(high, factor, unit)}"


def _scale(quantity: Quantity) -> tuple[float, str]:
    """Factor and name of the unit a quantity is shown in."""
    unit, value = str(quantity["unit"]), abs(float(quantity["value"]))
    for factor, name in _SCALES.get(unit, ()):
        if value >= factor:
            return factor, name
    return _SCALES[unit][-1] if unit in _SCALES else (1.0, _UNITS.get(unit, unit))


def _written(value: float, factor: float, unit: str) -> str:
    scaled = value / factor
    whole = (scaled == int(scaled) and factor == 1.0) or abs(scaled) >= 1e4
    text = f"{scaled:,.0f}" if whole else f"{scaled:,.2f}" if abs(scaled) >= 1 else f"{scaled:.3g}"
    return f"{text} {unit}".rstrip()


def card(title: str, value: str, *lines: str) -> str:
    """One number; empty lines are left out."""
    told = "".join(f'<span class="how">{escape(line)}</span>' for line in lines if line)
    return f'<div class="card"><span class="what">{escape(title)}</span><b>{escape(value)}</b>{told}</div>'


def of_model(report: Mapping[str, Any]) -> str:
    """What all targets share: accuracy, bytes, what explanations became."""
    return f'<div class="cards">{"".join((*_accuracy(report), *_bytes(report), *_survival(report)))}</div>'


def _accuracy(report: Mapping[str, Any]) -> list[str]:
    before, fake, after = (report["accuracy"].get(k) for k in ("float", "fake_quant", "deployed"))
    shown = after or fake
    if not shown:
        return [card("accuracy", "not known", "no test data were given, or counting was switched off")]
    what = "deployed code" if after else "fake-quantised, in torch"
    lines = [f"{what}; {shown['how']} on {shown['n']:,} samples, {_sampling(shown)}"]
    if before:
        change = f"{shown['value'] - before['value']:+.2f}".replace("-", "−")
        lines.insert(0, f"before: {before['value']:.2f} % in float ({change} points)")
    return [card("accuracy", f"{shown['value']:.2f} %", *lines)]


def _sampling(quantity: Quantity) -> str:
    """One standard error of a share of n samples."""
    share, n = quantity["value"] / 100.0, quantity["n"]
    return f"±{100 * (max(share * (1 - share), 0.0) / n) ** 0.5:.2f} by their number"


def _bytes(report: Mapping[str, Any]) -> list[str]:
    before, weights = report["model"]["float_bytes"], report["weights"]
    packed, ratio, coded = weights["packed_bytes"], weights["ratio_to_float"], weights["coded_bytes"]
    times = f"× {ratio['value']:.3f}; " if ratio["value"] is not None else ""
    lines = (f"before: {amount(before)} as float32 ({before['how']})", f"{times}{packed['how']}")
    found = [card("weights on the device", amount(packed), *lines)]
    if coded:
        found.append(card("the model as a file", amount(coded), f"entropy-coded, all counted; {coded['how']}"))
    return found


def _survival(report: Mapping[str, Any]) -> list[str]:
    found = (report["relevance"] or {}).get("survival")
    if not found:
        return []
    rank = found["spearman"]
    lines = ("rank correlation of the heat-maps with float's", f"± {rank['spread']:.2f} over samples; {rank['how']}")
    return [card("explanations", f"{rank['value']:.2f}", *lines)]


_ALWAYS = ("instructions", "latency", "energy")  # told to be unknown where they are; with the reason, if there is one


def of_target(report: Mapping[str, Any], at: int, name: str) -> str:
    """One target's heading, verdict and cards; shown alone where the page's script runs."""
    target = report["targets"][name]
    good = target["verdict"] == "bit-exact"
    told = (
        f"{target['verdict']} with the reference" if good else f"{target['verdict']}: {target['reason'] or 'no reason'}"
    )
    chip = f'<span class="chip {"good" if good else "bad"}">{escape(told)}</span>'
    head = f'<h3>{escape(name)} <span class="chip">{escape(target["isa"])}</span> {chip}</h3>'
    before, unknown = _before(report, name), target.get("cannot") or {}
    found = ""
    for key, title in _OF_TARGET.items():
        if target.get(key):
            found += _target_card(title, target[key], before.get(key, ""))
        elif key in _ALWAYS:
            found += card(title, "not known", unknown.get(key, "nothing here measures or models it"))
    by = f"run by {target['runner']}" if target.get("runner") else ""
    cycles = (target.get("cycles") or {}).get("note", "").partition(";")[0]
    told = f'<p class="note">cycles: {escape(cycles)}</p>' if cycles else ""
    return (
        f'<div data-t="{at}" data-name="{escape(name)}">{head}<p class="note">{escape(by)}</p>'
        f'<div class="cards">{found}</div>{told}</div>'
    )


def _target_card(title: str, quantity: Quantity, before: str) -> str:
    if quantity.get("value") is None:
        return card(title, "not known", str(quantity.get("note") or ""))
    bar, note = error_bar(quantity), str(quantity.get("note") or "")
    timed = note if quantity["unit"] == "s" and quantity["how"] == "measured" else ""
    how = f"{bar}; {quantity['how']}" if bar else str(quantity["how"])
    return card(title, amount(quantity), before, f"now: {how}" if before else how, timed)


def _before(report: Mapping[str, Any], name: str) -> dict[str, str]:
    """What the float network would need at the least, by quantity: nobody builds it for the target to measure it."""
    found = {"flash": f"before: {amount(report['model']['float_bytes'])} of float32 weights alone; modelled"}
    memory = (report.get("memory") or {}).get(name)
    if memory and (live := _live(memory)):
        found["ram"] = f"before: {4 * live:,} B of float32 activations alone; modelled"
    return found


def _live(memory: Mapping[str, Any]) -> int:
    """Bytes of the tensors, one each element, that an inference needs at the same time; without workspaces."""
    tensors = [b for b in memory["buffers"] if not b["name"].startswith("@")]
    steps = range(len(memory["steps"]) + 1)
    return max((sum(b["bytes"] for b in tensors if b["first"] <= k <= b["last"]) for k in steps), default=0)
