"""What the readable reports (terminal, Markdown, HTML) show: the report document as titled tables of strings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table; `align` is one of `<>` per column."""

    title: str
    columns: tuple[str, ...]
    align: str
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def number(quantity: Mapping[str, Any] | None, scale: float = 1.0, digits: int = 0) -> str:
    """A quantity's value with thousands separators, or a dash."""
    if not quantity or quantity.get("value") is None:
        return "-"
    return f"{quantity['value'] / scale:,.{digits}f}"


def labelled(quantity: Mapping[str, Any] | None, scale: float = 1.0, digits: int = 0) -> str:
    """As `number`, with the error bar of a modelled one, followed by how it was obtained."""
    text = number(quantity, scale, digits)
    if text == "-" or quantity is None:
        return text
    bounds = [f"{quantity[k] / scale:,.{digits}f}" for k in ("low", "high") if quantity.get(k) is not None]
    bar = f" ({bounds[0]}..{bounds[1]})" if quantity["how"] == "modelled" and len(bounds) == 2 else ""
    return f"{text}{bar} {quantity['how']}"


def headline(report: Mapping[str, Any]) -> Table:
    """Accuracy and size, before and after."""
    accuracy, model, weights = report["accuracy"], report["model"], report["weights"]
    rows = (
        ("accuracy, %", labelled(accuracy["float"], 1, 2), labelled(accuracy["deployed"], 1, 2)),
        ("weights, bytes", labelled(model["float_bytes"]), labelled(weights["packed_bytes"])),
        ("the model, entropy-coded, bytes", "", labelled(weights["coded_bytes"])),
        ("share of float32 weights", "1.000", labelled(weights["ratio_to_float"], 1, 3)),
        ("MACs", f"{model['macs']:,}", f"{sum(x['macs'] for x in report['layers']):,}"),
        *_survival(report),
    )
    n = accuracy["deployed"] or accuracy["fake_quant"]
    note = f"accuracy on {n['n']:,} samples; deployed = the integer code itself, on the host" if n else ""
    return Table("Before and after", ("", "float", "deployed"), "<>>", rows, note)


def _survival(report: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """How far the heat-maps are still the float network's; nothing where they were not compared."""
    found = (report["relevance"] or {}).get("survival")
    if not found:
        return ()
    rank = found["spearman"]
    return (("explanations, rank correlation", "1.00", f"{rank['value']:.2f} +-{rank['spread']:.2f} {rank['how']}"),)


_TARGET_COLUMNS = {
    "flash, B": ("flash", 1.0, 0),
    "RAM, B": ("ram", 1.0, 0),
    "stack, B": ("stack", 1.0, 0),
    "instructions": ("instructions", 1.0, 0),
    "cycles": ("cycles", 1.0, 0),
    "latency, us": ("latency", 1e-6, 1),
    "energy, uJ": ("energy", 1e-6, 1),
}
_TWO_COLUMNS = {
    "with two threads, us": ("latency_two_threads", 1e-6, 1),
    "two threads over one": ("ratio_two_threads", 1.0, 3),
}
TARGET_NOTE = (
    "flash = code + constants + initialised data of the package linked alone; "
    "RAM = arena + static, without stack and the caller's input and output"
)


def targets(report: Mapping[str, Any]) -> Table:
    """One row per target."""
    rows, values = [], dict(_TARGET_COLUMNS)
    if any("ratio_two_threads" in t for t in report["targets"].values()):
        values |= _TWO_COLUMNS
    for name, t in report["targets"].items():
        verdict = t["verdict"] + (f" ({t['reason']})" if t["reason"] else "")
        numbers = (labelled(t.get(key), scale, digits) for key, scale, digits in values.values())
        rows.append((name, t["isa"], verdict, *numbers))
    columns = ("target", "ISA", "against the reference", *values)
    models = {n: t["cycles"]["note"].partition(";")[0] for n, t in report["targets"].items() if t["cycles"]}
    note = "; ".join((TARGET_NOTE, *(f"cycles of {name}: {said}" for name, said in models.items())))
    return Table("Targets", columns, "<<<" + ">" * len(values), tuple(rows), note)


def layers(report: Mapping[str, Any]) -> Table:
    """One row per node of the integer graph."""
    names = [n for n, t in report["targets"].items() if t["instructions"]]
    rows = tuple(_layer(x, names) for x in report["layers"])
    columns = (
        "origin", "op", "shape", "MACs", "weights", "activations", "channels", "zeros, %", "relevance, %", "bytes",
    )  # fmt: skip
    titles = tuple(f"insn {n} ({report['targets'][n]['instructions']['how']})" for n in names)
    return Table("Layers", (*columns, *titles), "<<<>" + "<<>>>>" + ">" * len(names), rows)


_MODEL_COLUMNS = {
    "cycles": ("cycles", 1.0, 0),
    "energy, uJ": ("energy", 1e-6, 2),
    "proxy, nJ": ("accelerator", 1e-9, 1),
}
_MODEL_NOTE = (
    "energy: cycles times the board's energy per cycle; proxy: operations and memory accesses of accelerator-class "
    "logic, for comparing layers, not this board's energy"
)


def model(report: Mapping[str, Any]) -> Table:
    """What is modelled of each layer, for the targets that have it."""
    layers = report["layers"]
    columns = {
        f"{title} {name}": (name, *column)
        for name in report["targets"]
        for title, column in _MODEL_COLUMNS.items()
        if any(x["targets"][name].get(column[0]) for x in layers)
    }
    rows = tuple(
        (x["origin"], *(number(x["targets"][n].get(key), scale, digits) for n, key, scale, digits in columns.values()))
        for x in layers
        if columns
    )
    return Table("Layers, modelled", ("origin", *columns), "<" + ">" * len(columns), rows, _MODEL_NOTE)


def mix(report: Mapping[str, Any]) -> Table:
    """Executed instructions by class, in percent."""
    found = {name: t["classes"] for name, t in report["targets"].items() if t.get("classes")}
    classes = list(next(iter(found.values()), {}))
    rows = []
    for name, counts in found.items():
        total = sum(q["value"] for q in counts.values()) or 1
        rows.append((name, *(f"{100 * counts[c]['value'] / total:.1f}" for c in classes)))
    return Table("Instruction mix, % (emulated)", ("target", *classes), "<" + ">" * len(classes), tuple(rows))


def _layer(x: Mapping[str, Any], names: list[str]) -> tuple[str, ...]:
    share = "-" if x["relevance_share"] is None else f"{100 * x['relevance_share']:.1f}"
    kept = "-" if x["channels_after"] is None else f"{x['channels_after']}/{x['channels_before']}"
    zeros = f"{100 * x['zeros'] / x['weights']:.1f}" if x.get("weights") else "-"
    counts = (number(x["targets"][n]["instructions"]) for n in names)
    shape = "x".join(map(str, x["shape"]))
    formats = (x["weight_format"] or "-", x["activation_format"])
    return (x["origin"], x["op"], shape, f"{x['macs']:,}", *formats, kept, zeros, share, f"{x['bytes']:,}", *counts)


def kernels(report: Mapping[str, Any]) -> Table:
    """Which kernel runs each node on each target."""
    names = list(report["targets"])
    rows = tuple((x["origin"], *(x["targets"][n]["kernel"] or "(no code)" for n in names)) for x in report["layers"])
    return Table("Kernels", ("origin", *names), "<" * (len(names) + 1), rows)


def slow(report: Mapping[str, Any]) -> Table:
    """Layers far above the best of their kind, with the reason."""
    rows = tuple(
        (x["origin"], name, t["note"]) for x in report["layers"] for name, t in x["targets"].items() if t.get("note")
    )
    return Table("Layers above twice the cost of the best of their kind", ("origin", "target", "why"), "<<<", rows)


def facts(report: Mapping[str, Any]) -> list[str]:
    """Single lines that belong to no table; what the run did not have is left out."""
    m, d, r, o = report["model"], report["data"], report["relevance"], report["onnx"]
    lines = [f"model {m['name']}, {m['parameters']:,} parameters, sha256 {m['sha256'][:16]}"]
    if d:
        lines.append(f"data {d['name']} (fingerprint {d['fingerprint'][:16]}): {d['train']:,} train, ")
        lines[-1] += f"{d['validation']:,} validation, {d['test']:,} test samples; {d['test_from']}"
    if r:
        lines.append(f"relevance by {r['method']} on {r['samples']:,} samples, ")
        lines[-1] += f"conservation residual {r['conservation_residual']:.2e} (measured)"
    lines += _explanations(r or {})
    if o:
        of = o.get("of", "fake-quant")
        lines.append(f"ONNX Runtime against {of} on {o['n']:,} inputs: largest difference ")
        lines[-1] += f"{o['max_difference']} codes, {100 * o['equal']:.2f} % of the codes equal, "
        lines[-1] += f"top-1 agreement {100 * o['top1']:.2f} % (measured)"
        lines.append("each integer node fed with ONNX Runtime's own codes: largest difference ")
        lines[-1] += f"{o['node_max_difference']} code (measured)"
    for part in report["fallback"]:
        lines.append(f"in float, as the recipe allows: {part['node']} ({', '.join(part['ops'])}){_share(part)}")
    return lines


def _share(part: Mapping[str, Any]) -> str:
    """What share of an inference a part in float is, by target."""
    told = (f"; on {t} {100 * q['value']:.1f} % {q['note']} ({q['how']})" for t, q in part.get("share", {}).items())
    return "".join(told)


def _explanations(relevance: Mapping[str, Any]) -> list[str]:
    """What became of the heat-maps, or why nothing is known."""
    found = relevance.get("survival")
    if not found:
        reason = relevance.get("survival_reason")
        return [f"explanations were not compared: {reason}"] if reason else []
    names = {"pearson": "Pearson", "spearman": "Spearman", "top10": "overlap of the top 10 % (chance: 0.10)"}
    figures = (f"{text} {found[k]['value']:.3f} +-{found[k]['spread']:.3f}" for k, text in names.items())
    line = f"explanations by {found['method']} on {found['samples']:,} test samples, compressed against float: "
    undefined = f"; {found['undefined']} samples with an empty map count as 0" if found["undefined"] else ""
    note = f"; {found['note']}" if found["note"] else ""
    return [f"{line}{', '.join(figures)} (measured; mean and standard deviation over samples){undefined}{note}"]
