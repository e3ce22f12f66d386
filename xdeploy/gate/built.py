"""What is read of an artifact: its manifest, measurement, kernels and the accuracy measured for its run folder.

Everything is checked here, since files can be cut off, edited or mixed up on their way through a CI.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xdeploy.errors import UsageError, choose_from, shown
from xdeploy.files import read_json, sha256
from xdeploy.formats import FORMATS
from xdeploy.gate.limits import FIGURES
from xdeploy.handover import Measurement
from xdeploy.lir.rows import origin

_NAMES = {f.short: f.name for f in FORMATS.values()}
_LARGEST = 2**62
_AGAIN = "build it again"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer on one target: executed instructions (None: not counted), bytes of its constants, kernels, format."""

    origin: str
    instructions: int | None
    bytes: int
    kernel: str
    format: str | None


@dataclass(frozen=True, slots=True)
class Built:
    """One target folder. quantities: by key of `FIGURES`, those that are known. cannot: why others are not.

    accuracy: "deployed" and "float" as quantities in percent, those that are known. accuracy_note: why not, if so.
    """

    folder: Path
    target: str
    isa: str
    form: str
    model: str
    sha256: str
    tool: str
    runner: str
    verdict: str
    reason: str
    quantities: Mapping[str, Mapping[str, Any]]
    cannot: Mapping[str, str]
    layers: tuple[Layer, ...]
    accuracy: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    accuracy_note: str = ""


def read_all(folder: Path, targets: Sequence[str] = ()) -> list[Built]:
    """All targets of OUT, or the one of OUT/<target>; `targets` picks some.

    Raises:
        UsageError: nothing built there, an unknown target, files that are missing, broken or contradict each other.
    """
    folders = _folders(folder)
    for name in targets:
        if name not in folders:
            raise choose_from("target", name, folders)
    return [read(path) for name, path in folders.items() if not targets or name in targets]


def _folders(folder: Path) -> dict[str, Path]:
    """Folder of each target."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder of a built artifact", hint="give OUT or OUT/<target>")
    own = folder / "manifest.json"
    if own.exists():
        return {_text(_loaded(own, "xdeploy.manifest/1"), "target", own): folder}
    names = [p.parent.name for p in sorted(folder.glob("*/manifest.json")) if not p.parent.name.startswith(".")]
    if (folder / "run.json").exists():
        asked = _map(_loaded(folder / "run.json", "xdeploy.run/1"), "request", folder / "run.json").get("targets")
        if isinstance(asked, list) and all(isinstance(x, str) and x == Path(x).name for x in asked):
            missing = [x for x in asked if x not in names]
            if missing:
                raise UsageError(f"{folder}: not built: {', '.join(map(shown, missing))}", hint=_AGAIN)
            names = asked
    if not names:
        raise UsageError(f"{folder} holds no built target (no manifest.json)", hint="run `xdeploy build` on it first")
    return {name: folder / name for name in names}


def read(folder: Path) -> Built:
    """Read OUT/<target>.

    Raises:
        UsageError: a file is missing, broken, or they contradict each other.
    """
    where = folder / "manifest.json"
    manifest = _loaded(where, "xdeploy.manifest/1")
    bench = _measurement(folder / "bench.json")
    target = _text(manifest, "target", where)
    if bench.target != target:
        raise UsageError(f"{folder}: bench.json is of {shown(bench.target)}, manifest.json of {shown(target)}")
    quantities = _quantities(bench.quantities, folder / "bench.json")
    _agree(manifest, quantities, folder)
    model = _map(_map(manifest, "provenance", where), "model", where)
    accuracy, note = _accuracy(folder)
    cannot = _map(bench.tells, "cannot", folder / "bench.json")
    return Built(
        folder=folder,
        target=target,
        isa=_text(manifest, "isa", where),
        form=str(manifest.get("form", "")),
        model=str(model.get("name", manifest.get("model", ""))),
        sha256=str(model.get("sha256", "")),
        tool=str(_map(manifest, "tools", where).get("xdeploy", "")),
        runner=bench.runner,
        verdict=bench.verdict,
        reason=str(bench.reason or ""),
        quantities=quantities,
        cannot={str(k): str(v) for k, v in cannot.items()},
        layers=_layers(folder, bench),
        accuracy=accuracy,
        accuracy_note=note,
    )


def _loaded(path: Path, schema: str) -> dict[str, Any]:
    try:
        return read_json(path, schema)
    except RecursionError:
        raise UsageError(f"{path} is not readable JSON: nested too deeply") from None


def _measurement(path: Path) -> Measurement:
    _loaded(path, "xdeploy.bench/1")
    try:
        bench = Measurement.load(path)
        texts = (bench.target, bench.runner, bench.verdict, *(x.node for x in bench.layers))
        maps = (bench.quantities, bench.tells)
        counts = [x.instructions for x in bench.layers]
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no whole measurement: {type(error).__name__}: {error}", hint=_AGAIN) from None
    fine = all(isinstance(x, str) for x in texts) and all(isinstance(x, dict) for x in maps)
    if not fine or not all(isinstance(c, int) and not isinstance(c, bool) and 0 <= c < _LARGEST for c in counts):
        raise UsageError(f"{path} is no whole measurement: a field has another type than it must have", hint=_AGAIN)
    return bench


def _map(value: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    found = value.get(key, {})
    if not isinstance(found, dict):
        raise UsageError(f"{path}: {key} is no object", hint=_AGAIN)
    return found


def _text(value: Mapping[str, Any], key: str, path: Path) -> str:
    found = value.get(key)
    if not isinstance(found, str) or not found:
        raise UsageError(f"{path}: {key} is missing", hint=_AGAIN)
    return found


def _quantities(values: Mapping[str, Any], path: Path) -> dict[str, Mapping[str, Any]]:
    found = {}
    for figure in FIGURES:
        value = _quantity(values.get(figure.key), figure.key, figure.unit, path)
        if value is not None:
            found[figure.key] = value
    return found


def _quantity(value: Any, key: str, unit: str, path: Path) -> Mapping[str, Any] | None:
    """A quantity that can be judged, or None where there is no value.

    Raises:
        UsageError: there is one, but not in this unit, not labelled, or no finite number of 0 or more.
    """
    if value is None or (isinstance(value, dict) and value.get("value") is None):
        return None
    if not isinstance(value, dict) or value.get("unit") != unit:
        raise UsageError(f"{path}: {key} is no quantity in {unit}", hint=_AGAIN)
    if value.get("how") not in ("measured", "emulated", "modelled"):
        raise UsageError(f"{path}: {key} does not say whether it was measured, emulated or modelled", hint=_AGAIN)
    for part in ("value", "low", "high"):
        number = value.get(part)
        if number is not None and not _is_amount(number):
            raise UsageError(f"{path}: {key} has the {part} {shown(repr(number))}, no finite number of 0 or more")
    return value


def _is_amount(number: Any) -> bool:
    if not isinstance(number, int | float) or isinstance(number, bool):
        return False
    return 0 <= number < _LARGEST  # neither NaN nor infinite


def _agree(manifest: Mapping[str, Any], quantities: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Refuse a measurement of another build than the one in the folder."""
    where = folder / "manifest.json"
    flash, arena = _map(manifest, "flash", where), _map(manifest, "arena", where)
    parts: list[Any] = [flash.get(k) for k in ("code", "constants", "data")]
    if not all(map(_is_amount, [*parts, arena.get("bytes")])):
        raise UsageError(f"{where}: the sizes of flash and arena are missing", hint=_AGAIN)
    told = {"flash": sum(parts), "arena": arena["bytes"]}
    for key, value in told.items():
        if key in quantities and quantities[key]["value"] != value:
            given = quantities[key]["value"]
            raise UsageError(
                f"{folder}: bench.json has {given} bytes of {key}, manifest.json {value}: it measured another build",
                hint=f"run `xdeploy bench {folder}`",
            )


def _accuracy(folder: Path) -> tuple[dict[str, Mapping[str, Any]], str]:
    """Accuracies of the run folder that the target was built in, and why there is none, if so."""
    path = folder.resolve().parent / "accuracy.json"
    if not path.exists():
        return {}, "there is no accuracy.json beside the target's folder"
    golden = (folder / "golden.npz", path.parent / "golden.npz")
    if all(p.is_file() for p in golden) and len({sha256(p) for p in golden}) > 1:
        return {}, "accuracy.json is of another build: its golden outputs differ"
    value = _loaded(path, "xdeploy.accuracy/1")
    found = {}
    for key in ("deployed", "float"):
        quantity = _quantity(value.get(key), f"accuracy {key}", "%", path)
        if quantity is not None:
            if quantity["value"] > 100:
                raise UsageError(f"{path}: accuracy {key} is {quantity['value']} %", hint=_AGAIN)
            found[key] = quantity
    return found, "" if "deployed" in found else "accuracy.json has none of the deployed code; build with test data"


def _layers(folder: Path, bench: Measurement) -> tuple[Layer, ...]:
    """Bands of a streamed layer count as one."""
    path = folder / "program.json"
    nodes = _loaded(path, "xdeploy.program/1").get("nodes")
    try:
        rows = [(origin(str(n["name"])), str(n["kernel"]), int(n["bytes"])) for n in nodes or ()]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{path} is no whole program: {type(error).__name__}: {error}", hint=_AGAIN) from None
    counts: dict[str, int] = {}
    for row in bench.layers:
        counts[origin(row.node)] = counts.get(origin(row.node), 0) + row.instructions
    parts: dict[str, list[tuple[str, str, int]]] = {}
    for part in rows:
        parts.setdefault(part[0], []).append(part)
    return tuple(_layer(name, parts.get(name, []), counts.get(name)) for name in dict.fromkeys([*parts, *counts]))


def _layer(name: str, rows: Sequence[tuple[str, str, int]], count: int | None) -> Layer:
    kernels = list(dict.fromkeys(kernel for _, kernel, _ in rows))
    stems = [k.split("__")[0].split("_") for k in kernels]  # <op>_<activation>_<weight>_<tile>__<isa>
    weights = [stem[-2] for stem in stems if len(stem) >= 4]
    known = list(dict.fromkeys(_NAMES[w] for w in weights if w in _NAMES))
    return Layer(name, count, sum(r[2] for r in rows), " and ".join(kernels), " and ".join(known) or None)
