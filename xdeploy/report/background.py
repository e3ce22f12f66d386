"""What stands behind the headline: steps, front, buffers, stages, environment, recipe; as tables and pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xdeploy.report.tables import Table, number

_WORST = 10  # confusions told in texts
_REQUEST = {"model": "model given", "weights": "weights given", "data": "data given", "test_data": "test data given"}


def steps(report: Mapping[str, Any]) -> Table:
    """Bytes of the parameters and validation accuracy before and after each compression step."""
    rows = []
    for s in report["steps"]:
        sizes = [f"{s[k]:,}" if k in s else "-" for k in ("bytes_before", "bytes_after")]
        change = f"{s['accuracy_after'] - s['accuracy_before']:+.2f}"
        accuracies = f"{s['accuracy_before']:.2f}", f"{s['accuracy_after']:.2f}"
        rows.append((s["step"], *sizes, *accuracies, change, f"{s['n']:,}"))
    title = "Compression steps (bytes of the parameters; validation accuracy, %, measured)"
    columns = ("step", "bytes before", "after", "accuracy before", "after", "points", "samples")
    return Table(title, columns, "<>>>>>>", tuple(rows))


def front(report: Mapping[str, Any]) -> Table:
    """What the run measured of accuracy against bytes."""
    rows = [
        (p["label"], p["on"], f"{p['bytes']:,}", f"{p['accuracy']:.2f}", f"{p['n']:,}")
        for p in report.get("points", [])
    ]
    return Table("Accuracy against bytes", ("point", "samples of", "bytes", "accuracy, %", "n"), "<<>>>", tuple(rows))


def swept(report: Mapping[str, Any]) -> Table:
    """The trials of the sweep that the run belongs to."""
    rows = tuple(
        (f"{r['trial']}{' (this run)' if r['this'] else ''}", f"{r['bytes']:,}", f"{r['accuracy']:.2f}",
         "yes" if r["on_front"] else "no")
        for r in (report.get("front") or {}).get("trials", [])
    )  # fmt: skip
    return Table("Trials of the sweep", ("trial", "flash, B", "validation accuracy, %", "on the front"), "<>><", rows)


def buffers(memory: Mapping[str, Any]) -> Table:
    """What lies in an arena, where, and from which node to which."""
    names = [*memory["steps"], "(end)"]
    rows = tuple(
        (
            f"workspace of {b['name'][1:]}" if b["name"].startswith("@") else b["name"], f"{b['offset']:,}",
            f"{b['bytes']:,}", f"{b['first'] + 1} {names[b['first']]}", f"{b['last'] + 1} {names[b['last']]}",
        )
        for b in sorted(memory["buffers"], key=lambda b: (b["first"], b["offset"]))
    )  # fmt: skip
    return Table("Buffers", ("buffer", "offset", "bytes", "from step", "to step"), "<>><<", rows)


def confusions(report: Mapping[str, Any]) -> Table:
    """The most frequent errors of the deployed code."""
    found = report.get("confusion") or {"labels": [], "counts": []}
    worst = sorted((row for row in found["counts"] if row[0] != row[1]), key=lambda row: -row[2])[:_WORST]
    rows = tuple((found["labels"][i], found["labels"][j], f"{n:,}") for i, j, n in worst)
    return Table("Most frequent errors of the deployed code", ("true class", "taken for", "samples"), "<<>", rows)


def stages(report: Mapping[str, Any]) -> Table:
    """Time and peak memory of each stage, measured; skipped ones as they were when they ran."""
    memory = report.get("stages_memory") or {}
    rows = tuple(
        (name, f"{q['value']:,.1f}", number(memory.get(name), 2**20), q["how"])
        for name, q in (report.get("stages") or {}).items()
    )
    notes = dict.fromkeys(q["note"] for q in memory.values() if q.get("note"))
    note = "; ".join(["of the run that did the stage", *(f"memory: {text}" for text in notes)])
    return Table("Time and memory of the stages", ("stage", "seconds", "peak, MiB", "how"), "<>><", rows, note)


def environment(report: Mapping[str, Any]) -> dict[str, str]:
    """Machine, versions, commit, hashes."""
    told, of = report.get("environment") or {}, report.get("provenance") or {}
    found = {"xdeploy": f"{report['tool']['version']}"} if report.get("tool") else {}
    if told:
        found |= {"machine": f"{told['cpu']}, {told['cores']} cores", "system": told["system"]}
        found |= {"commit": told["commit"] or "not run from a checkout", "Python": told["python"]}
        found["packages"] = ", ".join(f"{name} {version}" for name, version in told["packages"].items())
    found |= {text: str(value) for k, text in _REQUEST.items() if (value := (of.get("request") or {}).get(k))}
    found["model, sha256"] = report["model"]["sha256"]
    if report["data"]:
        found["data, fingerprint"] = report["data"]["fingerprint"]
    return found | {f"{name}, sha256": digest for name, digest in (of.get("files") or {}).items()}


def surroundings(report: Mapping[str, Any]) -> Table:
    """`environment` as a table."""
    return Table("Environment and provenance", ("what", "value"), "<<", tuple(environment(report).items()))


def built(report: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What each target was built and measured with, by target."""
    found = {}
    for name, row in ((report.get("provenance") or {}).get("targets") or {}).items():
        values = {"tools": ", ".join(f"{tool} {version}" for tool, version in row["tools"].items())}
        values |= {k: str(v) for k, v in row["environment"].items() if isinstance(v, str | int | float)}
        hashes = {
            "manifest, sha256": "manifest_sha256",
            "recipe, sha256": "recipe_sha256",
            "weights, CRC-32": "weights_crc32",
        }
        found[name] = values | {text: str(row[k]) for text, k in hashes.items() if row.get(k)}
    return found


def recipe(report: Mapping[str, Any]) -> dict[str, str]:
    """Every option of the recipe as section.key."""
    found: dict[str, str] = {}
    for section, value in (report.get("recipe") or {}).items():
        rows = value.items() if isinstance(value, Mapping) else ((None, value),)
        found |= {f"{section}.{key}" if key else section: str(v) for key, v in rows}
    return found
