"""Whether explanations survive compression: figures, their files, and what the reports say of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.compress.toynets import io_of
from tests.explain.toys import source, vectors
from xdeploy.compress.apply import compress
from xdeploy.compress.fakequant import real_network
from xdeploy.compress.model import CompressedModel
from xdeploy.explain.survival import FEWEST, SAMPLES, sample_count, subset, survive
from xdeploy.files import read_npz
from xdeploy.handover import CompressionPlan, PlanLine
from xdeploy.model.network import Network
from xdeploy.model.source import SourceModel
from xdeploy.recipe import CompressOptions, RecoverOptions, RelevanceOptions
from xdeploy.relevance import score
from xdeploy.relevance.heatmaps import heatmaps
from xdeploy.report import html
from xdeploy.report.tables import facts, headline

OPTIONS = RelevanceOptions(samples=24)


def compressed(s: SourceModel, keep: tuple[int, ...] | None = None, bits: str = "int8") -> CompressedModel:
    relevance = score(s.network, s.train_batches(32, limit=24), OPTIONS, s.fingerprint)
    lines = (PlanLine(x.name, bits, keep=keep if x.name == "mid" else None) for x in s.network.weighted())
    return compress(
        s.network, CompressionPlan(tuple(lines)), relevance, io_of(s.network), lambda: [next(s.train_batches(64))[0]],
        None, lambda: s.validation_batches(64), CompressOptions(), RecoverOptions(), 0,
    )  # fmt: skip


def quiet(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def test_figures_are_those_of_scipy_over_the_test_samples(tmp_path):
    s = source()
    model = compressed(s, bits="int3")
    found = survive(s, model, OPTIONS, tmp_path, quiet)
    value = found["survival"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    x, y = next(iter(s.test.batches(s.test_indices, 999)))
    real = real_network(model.network, model.weights, model.activations)
    a, b = (heatmaps(n, x, y, OPTIONS).sum(axis=1).reshape(len(x), -1) for n in (s.network, real))
    for key, measure in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        own = np.array([measure(u, v).statistic for u, v in zip(a, b, strict=True)])
        assert value[key]["value"] == pytest.approx(own.mean(), abs=1e-5)
        assert value[key]["spread"] == pytest.approx(own.std(), abs=1e-5)
        assert (value[key]["n"], value[key]["how"], value[key]["unit"]) == (len(x), "measured", "1")
    assert value["samples"] == s.test_count
    assert (value["method"], value["note"], found["survival_reason"]) == ("lrp", None, None)
    assert 0.1 < value["top10"]["value"] <= 1


def test_files_hold_what_is_pictured(tmp_path):
    s = source()
    found = survive(s, compressed(s), OPTIONS, tmp_path, quiet)
    assert found["files"] == sorted(p.name for p in tmp_path.iterdir()) == ["survival.npz", "survival.png"]
    arrays = read_npz(tmp_path / "survival.npz")
    assert arrays["float_maps"].shape == arrays["compressed_maps"].shape == arrays["inputs"].shape
    assert arrays["float_predicted"].shape == arrays["labels"].shape


def test_fewer_bits_and_channels_survive_less(tmp_path):
    s = source()
    values = [
        survive(s, model, OPTIONS, tmp_path, quiet)["survival"]["pearson"]["value"]
        for model in (compressed(s), compressed(s, bits="int3"), compressed(s, keep=(0, 1, 2)))
    ]
    assert values[0] > 0.97
    assert values[0] > values[1]
    assert values[0] > values[2]


def test_lrp_stands_in_for_methods_without_heatmaps(tmp_path):
    s = source()
    model = compressed(s)
    own = survive(s, model, OPTIONS, tmp_path, quiet)["survival"]
    other = survive(s, model, replace(OPTIONS, method="magnitude"), tmp_path, quiet)["survival"]
    assert other["note"] == "lrp explains, as magnitude has no heat-maps"
    assert {**other, "note": None} == own


def test_vectors(tmp_path):
    s = vectors()
    found = survive(s, compressed(s), replace(OPTIONS, method="deeplift"), tmp_path, quiet)
    assert found["survival"]["method"] == "deeplift"
    assert found["survival"]["spearman"]["value"] > 0.9


def test_networks_that_cannot_be_explained_say_why(tmp_path):
    s = source()
    survive(s, compressed(s), OPTIONS, tmp_path, quiet)
    found = survive(s, compressed(vectors()), OPTIONS, tmp_path, quiet)
    assert found["survival"] is None
    assert "same inputs and classes" in found["survival_reason"]
    assert found["files"] == []
    assert not list(tmp_path.iterdir())


def test_large_networks_and_slow_methods_get_fewer_samples():
    small = source().network
    assert sample_count(small, OPTIONS) == SAMPLES
    layers = tuple(replace(x, shape=(x.shape[0], 4000, 4000)) if len(x.shape) == 3 else x for x in small.layers)
    large = Network(layers, small.params)
    assert sample_count(large, OPTIONS) == FEWEST
    layers = tuple(replace(x, shape=(x.shape[0], 620, 620)) if len(x.shape) == 3 else x for x in small.layers)
    middle = Network(layers, small.params)
    counts = [sample_count(middle, replace(OPTIONS, method=m)) for m in ("gradient", "lrp", "deeplift")]
    assert SAMPLES >= counts[0] >= counts[1] > counts[2] > FEWEST


def test_the_subset_is_of_the_test_samples_and_fixed():
    s = source()
    assert sorted(subset(s, 999)) == s.test_indices.tolist()
    assert subset(s, 3).tolist() == subset(s, 5)[:3].tolist()
    assert subset(s, 9).tolist() != subset(replace(s, seed=1), 9).tolist()


def report(survival: object, reason: str | None = None) -> dict[str, object]:
    base = {"value": 1.0, "unit": "%", "how": "measured", "n": 5}
    return {
        "model": {"name": "toy", "sha256": "0" * 64, "parameters": 1, "macs": 1, "float_bytes": base},
        "data": None, "steps": [], "layers": [], "targets": {}, "fallback": [], "onnx": None,
        "accuracy": {"float": base, "fake_quant": base, "deployed": base},
        "weights": {"packed_bytes": base, "coded_bytes": None, "ratio_to_float": base},
        "relevance": {
            "method": "lrp", "samples": 5, "conservation_residual": 0.1, "survival": survival,
            "survival_reason": reason,
        },
    }  # fmt: skip


def test_reports_tell_figures_or_the_reason(tmp_path: Path):
    s = source()
    value = survive(s, compressed(s), OPTIONS, tmp_path, quiet)["survival"]
    full, empty = report(value), report(None, "no <classes>")
    assert headline(full).rows[-1][0] == "explanations, rank correlation"  # type: ignore[arg-type]
    assert f"{value['spearman']['value']:.2f}" in headline(full).rows[-1][2]  # type: ignore[arg-type]
    assert any(f"Spearman {value['spearman']['value']:.3f}" in line for line in facts(full))  # type: ignore[arg-type]
    assert all("explanations" not in row[0] for row in headline(empty).rows)  # type: ignore[arg-type]
    assert "explanations were not compared: no <classes>" in facts(empty)  # type: ignore[arg-type]
    picture = tmp_path / "survival.png"
    assert "data:image/png;base64," in html.render(full, picture)  # type: ignore[arg-type]
    assert "data:image" not in html.render(full)  # type: ignore[arg-type]
    assert "data:image" not in html.render(empty, picture)  # type: ignore[arg-type]
    assert "no &lt;classes&gt;" in html.render(empty)  # type: ignore[arg-type]
