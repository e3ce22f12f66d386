"""The program that compares methods: its cells, what it keeps, what it refuses, its tables."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import compression
import numpy as np
import pytest
from campaign import charts, rows, tables
from campaign.cells import KINDS, METHODS, POINTS, SMALLER, Scale, Tuning, cell, points_of
from campaign.networks import NETWORKS, Place, Ready
from campaign.rows import Job, Results, changed, key_of

from tests.compress.toynets import residual
from xdeploy.formats import weight_format
from xdeploy.model import demo
from xdeploy.recipe import Recipe

SCALE = Scale(residual())


def recipe_of(options: dict[str, Any]) -> Recipe:
    return Recipe().with_options(options)


# ------------------------------------------------------------------------------------------------------- cells
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_cell_is_recipes_or_a_reason(method: str, kind: str) -> None:
    for point in {p for points in (POINTS, *SMALLER.values()) for p in points[kind]}:
        found = cell(method, kind, point, SCALE)
        if isinstance(found, str):
            assert len(found) > 10
            continue
        assert found
        for options in found.values():
            assert recipe_of(options | Tuning().options()) != Recipe()


def test_variants_have_the_same_names_at_every_point() -> None:
    for method in METHODS:
        for kind in KINDS:
            found = [cell(method, kind, p, SCALE) for p in POINTS[kind]]
            assert len({x if isinstance(x, str) else tuple(x) for x in found}) == 1


def test_every_kind_has_relevance_and_its_rivals() -> None:
    for kind in KINDS:
        has = {m for m in METHODS if not isinstance(cell(m, kind, POINTS[kind][0], SCALE), str)}
        assert {"lrp", "deeplift", "magnitude", "random", "fisher", "wanda"} <= has


def test_only_the_share_differs_between_lrp_and_lrp_share() -> None:
    raw, share = (cell(m, "weights", 0.35, SCALE) for m in ("lrp", "lrp-share"))
    assert not isinstance(raw, str)
    assert not isinstance(share, str)
    assert {o["plan.zeros"] for o in raw.values()} == {"relevance"}
    assert {(o["plan.density_by"], o["plan.zeros"]) for o in share.values()} == {("relevance", "magnitude")}


def test_bytes_of_a_format_counted_by_hand() -> None:
    network = residual()
    whole = 0
    for layer in network.weighted():
        weight = network.params[layer.name]["weight"]
        bits = weight[0].size * weight_format("int4").bits
        whole += len(weight) * (-(-bits // 8) + 8)
    assert SCALE.bytes("int4") == whole
    assert SCALE.mean_bits(4) == whole
    between = SCALE.mean_bits(2.5)
    assert between == round((SCALE.bytes("int2") + SCALE.bytes("int3")) / 2)


# -------------------------------------------------------------------------------------------- rows that are kept
class Stub:
    """Stands for `Ready`: weights that need no training."""

    def __init__(self, weights: Path) -> None:
        self.weights, self.net, self.schedule = weights, NETWORKS["digits"], NETWORKS["digits"].further
        self.place, self.baseline = Place(weights.parent, weights.parent), {"given": {"test": 1.0}}


def job_of(seed: int = 0, **options: Any) -> Job:
    return Job("headline/digits/x/0", "digits", "lrp", "x", seed, recipe_of({"seed": seed, **options}), {})


def test_a_row_is_kept_until_recipe_seed_or_weights_change(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"a")
    keys = [key_of(job_of(), weights), key_of(job_of(1), weights), key_of(job_of(**{"plan.density": 0.5}), weights)]
    assert key_of(job_of(), weights) == keys[0]
    weights.write_bytes(b"b")
    keys.append(key_of(job_of(), weights))
    assert len(set(keys)) == 4
    results = Results(tmp_path / "r.json")
    results.put({"id": "a", "key": keys[0], "commit": "first"})
    again = Results(tmp_path / "r.json")
    assert again.kept("a", keys[0]) == {"id": "a", "key": keys[0], "commit": "first"}
    assert again.kept("a", keys[1]) is None
    assert again.kept("b", keys[0]) is None


def test_options_of_a_row_are_those_that_were_changed() -> None:
    assert changed(Recipe()) == {}
    assert changed(recipe_of({"seed": 3, "plan.density": 0.5})) == {"seed": 3, "plan.density": 0.5}


def test_a_float_network_that_was_trained_less_is_refused(tmp_path: Path) -> None:
    job = job_of(**{"recover.epochs": 26})
    with pytest.raises(RuntimeError, match="26 epochs, the float network only 25 more"):
        rows.measure(job, Stub(tmp_path / "none"))  # type: ignore[arg-type]


def test_a_row_whose_code_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = {"targets": {"x86-64": {"verdict": "differs", "reason": "3 codes"}}}
    stub = Stub(tmp_path / "w")
    stub.weights.write_bytes(b"a")
    monkeypatch.setattr(rows, "run", lambda request, **_: SimpleNamespace(report=report))
    monkeypatch.setattr(rows, "request_of", lambda *_: None)
    with pytest.raises(RuntimeError, match="x86-64 is differs: 3 codes"):
        rows.measure(job_of(), stub)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- the program
def test_ids_are_unique_and_chosen_by_pattern() -> None:
    ids = [x.id for x in compression.selected([], None)]
    assert len(set(ids)) == len(ids)
    chosen = [x.id for x in compression.selected(["methods/digits/weights/lamp/*/plain"], [7])]
    assert chosen == [f"methods/digits/weights/lamp/{p:g}/plain/7" for p in POINTS["weights"]]
    chosen = [x.id for x in compression.selected(["methods/spoken/weights/lamp/*/tuned"], [0])]
    assert chosen == [f"methods/spoken/weights/lamp/{points_of('spoken', 'weights')[1]:g}/tuned/0"]
    assert {x.id.split("/")[2] for x in compression.selected(["headline/digits"], [0])} >= {"ecqx", "soroush"}


def test_recipes_of_a_network_run_on_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "resnet20-tiny.toml").write_text("seed = 1\n")
    monkeypatch.setattr(compression, "RECIPES", tmp_path)
    assert [x.id for x in compression.headlines(None)] == [f"headline/resnet20/resnet20-tiny/{s}" for s in range(3)]


def test_a_pattern_of_nothing_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        compression.main(["--only", "headline/nothing/*"])
    assert ended.value.code == 2
    assert "no row is called headline/nothing/*" in capsys.readouterr().err


def test_a_row_by_the_whole_flow_and_kept_the_next_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "EPOCHS", 2)
    arguments = [
        "--only", "methods/digits/weights/lamp/0.5/plain/0", "--further", "1", "--work", str(tmp_path / "work"),
        "--results", str(tmp_path / "results"), "--shared", str(tmp_path),
    ]  # fmt: skip
    assert compression.main(arguments) == 0
    first = json.loads((tmp_path / "results" / "methods.json").read_text())
    assert "new methods/digits/weights/lamp/0.5/plain/0" in capsys.readouterr().err
    assert compression.main(arguments) == 0
    assert "kept methods/digits/weights/lamp/0.5/plain/0" in capsys.readouterr().err
    assert json.loads((tmp_path / "results" / "methods.json").read_text()) == first
    (row,) = first["runs"]
    assert row["verdict"] == "bit-exact"
    assert {"network", "data", "method", "recipe", "seed", "float_accuracy", "accuracy", "float_bytes", "packed_bytes",
            "coded_bytes", "macs", "commit", "baseline", "loss", "seconds"} <= set(row)  # fmt: skip
    assert row["accuracy"]["n"] == row["baseline"]["given"]["n"] == 359
    assert row["loss"] == max(row["baseline"][k]["test"] for k in ("given", "further")) - row["accuracy"]["value"]
    assert row["coded_ratio"] == row["float_bytes"]["value"] / row["coded_bytes"]["value"]
    assert row["macs"] == row["macs_before"]
    assert (tmp_path / "results" / "methods-digits.svg").read_text().startswith("<?xml")
    assert "| lamp | one threshold |" in (tmp_path / "results" / "compression.md").read_text()


def test_a_row_that_fails_is_told_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--only", "headline/resnet20/filters/0", "--only", "headline/vgg16/filters/0"]
    folders = ["--work", str(tmp_path), "--results", str(tmp_path / "r"), "--shared", str(tmp_path / "nowhere")]
    assert compression.main([*arguments, *folders]) == 1
    told = capsys.readouterr().err
    assert "[1/2] FAILED headline/resnet20/filters/0" in told
    assert "[2/2] FAILED headline/vgg16/filters/0" in told
    assert "does not exist" in told


def test_the_better_float_network_on_validation_data_is_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, further = tmp_path / "given", tmp_path / "further"
    ready = Ready(NETWORKS["digits"], Place(tmp_path, tmp_path), 0)
    monkeypatch.setattr(Ready, "_given_weights", given)
    ready.__dict__["further"] = further
    ready.__dict__["baseline"] = {
        "given": {"validation": 99.0, "test": 90.0},
        "further": {"validation": 98.0, "test": 91.0},
    }
    assert ready.weights == given
    assert ready.best == 91.0
    ready.__dict__.pop("weights")
    ready.baseline["further"]["validation"] = 99.0
    assert ready.weights == further


@pytest.mark.parametrize(("epochs", "chosen"), [(7, "further"), (0, "given")])
def test_validation_data_that_a_network_was_trained_on_do_not_choose_it(
    epochs: int, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = Ready(NETWORKS["vgg16"], Place(tmp_path, tmp_path), 0, epochs)
    monkeypatch.setattr(Ready, "_given_weights", tmp_path / "given")
    ready.__dict__["further"] = tmp_path / "further"
    ready.__dict__["baseline"] = {k: {"validation": v, "test": 0.0} for k, v in (("given", 94.5), ("further", 91.6))}
    assert ready.weights == tmp_path / chosen


# ------------------------------------------------------------------------------------------------------- tables
def row_of(method: str, seed: int, accuracy: float, size: int, point: float = 0.5) -> dict[str, Any]:
    return {
        "id": f"{method}{seed}{point}", "network": "n", "kind": "weights", "method": method, "point": point,
        "tuned": False, "seed": seed, "variant": "v", "accuracy": {"value": accuracy, "n": 100},
        "coded_bytes": {"value": size},
    }  # fmt: skip


def test_tables_tell_means_spreads_reasons_and_who_wins() -> None:
    found = [row_of("lrp", 0, 90.0, 100), row_of("lrp", 1, 92.0, 300), row_of("magnitude", 0, 95.0, 200)]
    found += [row_of("ecqx", 0, 80.0, 50, 0.2), row_of("magnitude", 0, 70.0, 50, 0.2)]
    found += [row_of("lrp", 0, 80.0, 50, 0.1), row_of("ecq", 0, 70.0, 50, 0.1)]  # without magnitude: nobody wins
    found.append({"id": "x", "network": "n", "kind": "weights", "method": "hessian", "reason": "no such thing"})
    text = tables.comparison(found)
    assert "| lrp | v | 91.00 ± 1.00 (200) | - |" in text
    assert "No number: hessian: no such thing." in text
    lines = tables.verdicts(found).splitlines()[2:]
    assert lines == [
        "| n | none | weights | 0.5 | lrp 91.00 | magnitude 95.00 | -4.00 | 5.83 | within noise |",
        "| n | none | weights | 0.2 | ecqx 80.00 | magnitude 70.00 | +10.00 | 11.92 | within noise |",
    ]


def test_a_win_is_more_than_the_choice_of_test_images_explains() -> None:
    ours, other = ([row_of(m, seed, p, 50) for seed in (0, 1, 2)] for m, p in (("lrp", 80.0), ("magnitude", 70.0)))
    noise = tables.noise_of(ours, other)
    rng = np.random.default_rng(5)
    drawn = [rng.binomial(300, p, 100_000) / 3.0 for p in (0.8, 0.7)]  # 300 images, percent
    beyond = np.abs((drawn[0] - drawn[1]) - 10.0) > noise
    assert 0.04 < beyond.mean() < 0.06  # one time in twenty
    assert tables.verdicts([*ours, *other]).endswith(f"| +10.00 | {noise:.2f} | relevance wins |")
    assert tables.verdicts([*row_pairs(ours, 60.0), *other]).endswith("| relevance does not win |")


def row_pairs(rows: list[dict[str, Any]], accuracy: float) -> list[dict[str, Any]]:
    """The same rows with another accuracy."""
    return [r | {"accuracy": {"value": accuracy, "n": 100}} for r in rows]


def test_charts_of_the_same_rows_have_the_same_bytes(tmp_path: Path) -> None:
    found = [row_of("lrp", 0, 90.0, 100), row_of("lrp", 0, 70.0, 50, 0.2), row_of("magnitude", 0, 95.0, 200)]
    written = [charts.draw(found, tmp_path)[0].read_bytes() for _ in range(2)]
    assert written[0] == written[1]
    assert b"lrp" in written[0]


def test_spread_is_half_the_range() -> None:
    assert tables.spread([1.0]) == "1.00"
    assert tables.spread(list(np.array([1.0, 2.0, 4.0]))) == "2.33 ± 1.50"


def test_cases_of_restoring_differ_in_one_option_only() -> None:
    import restore

    assert len(restore.CASES) >= 8
    for options in restore.CASES.values():
        on, off = (recipe_of(restore.PLAIN | options | {"compress.restore": x}) for x in (True, False))
        assert set(changed(off)) - set(changed(on)) == {"compress.restore"}
