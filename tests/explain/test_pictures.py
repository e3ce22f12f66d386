"""Pictures, the table of scores and the page of `xdeploy explain`."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from tests.compress.toynets import batches
from tests.explain.toys import signals, source, vectors
from xdeploy.explain import explain
from xdeploy.explain.drawing import plain
from xdeploy.explain.montage import flat, is_image, picture, scaled
from xdeploy.explain.samples import choose, show
from xdeploy.explain.scores import rank_correlation, scores
from xdeploy.handover import IoSpec, RelevanceMap
from xdeploy.model.source import SourceModel
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import RelevanceOptions
from xdeploy.relevance import score


def scored(s: SourceModel, options: RelevanceOptions) -> RelevanceMap:
    return score(s.network, s.train_batches(32, limit=24), options, s.fingerprint)


def quiet(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def written(s: SourceModel, folder: Path, **options: object) -> tuple[list[str], RelevanceMap]:
    o = RelevanceOptions(**{"samples": 24, **options})  # type: ignore[arg-type]
    relevance = scored(s, o)
    return explain(s, relevance, o, folder, quiet), relevance


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))


def test_all_is_written_and_the_page_holds_it(tmp_path):
    names, relevance = written(source(), tmp_path)
    assert names == ["samples.png", "layers.svg", "filters.svg", "weights.svg", "scores.json", "explain.html"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    text = (tmp_path / "explain.html").read_text()
    page = Page(text)
    held = [base64.b64decode(str(i["src"]).partition(",")[2]) for i in page.images]
    assert held == [(tmp_path / n).read_bytes() for n in names[:4]]
    assert all(i["alt"] for i in page.images)
    assert not {"script", "link", "b"} & page.tags
    assert not re.search(r"""(src|href)=["']?http""", text)
    assert f"{relevance.conservation_residual:.2e}" in text
    assert "composite epsilon" in text
    assert "24 training samples" in text


def test_two_runs_give_the_same_bytes(tmp_path):
    s = source()
    names, _ = written(s, tmp_path / "a")
    written(s, tmp_path / "b")
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_methods_without_heatmaps_say_so(tmp_path):
    s = source()
    written(s, tmp_path)
    names, _ = written(s, tmp_path, method="magnitude")
    assert "samples.png" not in names
    assert not (tmp_path / "samples.png").exists()
    text = (tmp_path / "explain.html").read_text()
    assert "magnitude does not reach the input" in text
    assert "conservation residual" not in text
    rows = json.loads((tmp_path / "scores.json").read_text())["layers"]
    assert all(x["rank_correlation"] == pytest.approx(1) for x in rows)


@pytest.mark.parametrize("make", [vectors, signals])
@pytest.mark.parametrize("method", ["lrp", "gradient"])
def test_inputs_that_are_no_images(tmp_path, make, method):
    names, _ = written(make(), tmp_path, method=method)
    with Image.open(tmp_path / "samples.png") as image:
        assert image.width > image.height > 300
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    assert ((colours[:, 0] - colours[:, 2]) > 100).any()  # red
    assert ((colours[:, 2] - colours[:, 0]) > 100).any()  # blue
    assert "layers.svg" in names


def test_charts_name_every_layer_and_its_rank_correlation(tmp_path):
    s = source()
    _, relevance = written(s, tmp_path)
    for chart in ("layers", "filters", "weights"):
        root = ElementTree.parse(tmp_path / f"{chart}.svg").getroot()
        texts = {t.text for t in root.iter("{http://www.w3.org/2000/svg}text")}
        assert {x.name for x in s.network.weighted()} <= texts, chart
    for name, values in relevance.weight.items():
        own = stats.spearmanr(np.abs(values).ravel(), np.abs(s.network.params[name]["weight"]).ravel()).statistic
        assert f"rank correlation {own:.2f}" in texts


def test_scores_against_sums_by_hand():
    s = source()
    relevance = scored(s, RelevanceOptions(samples=24))
    found = scores(s.network, relevance)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["schema"] == "xdeploy.scores/1"
    rows = {x["origin"]: x for x in found["layers"]}
    assert list(rows) == [x.name for x in s.network.weighted()]
    total = sum(float(np.abs(v).sum()) for v in relevance.channel.values())
    count = sum(s.network.params[n]["weight"].size for n in rows)
    for name, row in rows.items():
        assert row["relevance_share"] == pytest.approx(np.abs(relevance.channel[name]).sum() / total)
        assert row["weight_share"] == s.network.params[name]["weight"].size / count
        assert row["filters"] == pytest.approx(relevance.channel[name].tolist())
        assert row["unscored"] == (relevance.weight[name] == 0).sum()
    assert sum(x["mac_share"] for x in rows.values()) == pytest.approx(1)


def test_rank_correlation_against_scipy():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 5, (6, 7)), rng.normal(size=(6, 7))
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a.ravel(), b.ravel()).statistic)
    assert rank_correlation(a, np.zeros((6, 7))) is None


def test_dead_layers_are_drawn_too(tmp_path):
    s = source()
    relevance = scored(s, RelevanceOptions(samples=24))
    first = next(iter(relevance.weight))
    relevance.weight[first][:] = 0  # type: ignore[index]
    explain(s, relevance, RelevanceOptions(samples=24), tmp_path, quiet)
    texts = (tmp_path / "weights.svg").read_text()
    assert "all alike, or all zero" in texts
    assert "rank correlation undefined" in texts


def test_many_layers_make_several_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr("xdeploy.explain.charts._PER_PICTURE", 3)
    names, relevance = written(source(), tmp_path)
    assert len(relevance.weight) == 4
    assert [n for n in names if n.startswith("weights")] == ["weights-1.svg", "weights-2.svg"]
    assert len(Page((tmp_path / "explain.html").read_text()).images) == 6


def test_chosen_samples_are_of_the_test_part_and_of_all_classes():
    s = source()
    for count, each in ((20, 2), (8, 2), (4, 1)):
        chosen = choose(s, count)
        assert set(chosen) <= set(s.test_indices)
        assert len(set(chosen)) == len(chosen)
        held = s.test.labels[chosen]
        assert held.tolist() == sorted(held)
        present = {k: min(each, int((s.test.labels[s.test_indices] == k).sum())) for k in set(held.tolist())}
        assert {k: held.tolist().count(k) for k in present} == present
        assert chosen.tolist() == choose(s, count).tolist()
    assert len(choose(s, 2)) == 2


def test_shown_predictions_are_the_networks():
    s = source()
    chosen = choose(s, 8)
    shown = show(s, chosen, [s.network], RelevanceOptions(method="magnitude"), maps=False)
    x, y = next(iter(s.test.batches(chosen, 99)))
    assert shown.predicted[0].tolist() == NetworkModule(s.network).eval()(x).argmax(1).tolist()
    assert shown.labels.tolist() == y.tolist()
    assert shown.maps == ()
    assert batches(x, y)[0][0].numpy().tobytes() == shown.inputs.tobytes()


def test_pictures_take_the_normalisation_back():
    x = np.random.default_rng(0).uniform(size=(3, 4, 5)).astype(np.float32)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    given = (x - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    io_ = IoSpec("x", (3, 4, 5), "y", (2,), mean, std)
    np.testing.assert_allclose(picture(given.astype(np.float32), io_), np.moveaxis(x, 0, -1), atol=1e-6)
    grey = picture(4 * x[:1] - 7, IoSpec("x", (1, 4, 5), "y", (2,)))
    assert grey.shape == (4, 5)
    assert (grey.min(), grey.max()) == (0.0, 1.0)
    assert picture(np.concatenate([x, x]), IoSpec("x", (6, 4, 5), "y", (2,))).shape == (4, 5)
    assert not picture(x * 0, IoSpec("x", (3, 4, 5), "y", (2,))).any()


def test_maps_as_drawn():
    maps = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    assert flat(maps).tolist() == maps.sum(axis=1).tolist()
    assert flat(maps.reshape(2, 3, 1, 4)).shape == (2, 4)
    assert flat(maps.reshape(2, 12)).shape == (2, 12)
    assert is_image((1, 8, 8))
    assert not is_image((2, 1, 40))
    assert not is_image((24,))
    one = np.zeros((2, 10, 10))
    one[0, 3, 3] = -5  # a single value beside zeros is full colour all the same
    assert scaled(one)[0, 3, 3] <= -1
    assert not scaled(one)[1].any()


def test_names_in_pictures():
    assert plain("conv1") == "conv1"
    assert plain("a\nb\u202ec") == "a\\nb\\u202ec"
    assert len(plain("x" * 100, 24)) == 24


def test_svg_keeps_hostile_names_as_text(tmp_path):
    s = source()
    o = RelevanceOptions(samples=24)
    relevance = scored(s, o)
    name = "$\\frac{a}{b}$<script>&"
    first = next(iter(relevance.weight))
    layers = tuple(
        type(x)(*(name if v == first else v for v in (x.name, x.kind)),
                tuple(name if i == first else i for i in x.inputs), x.shape, x.attrs)
        for x in s.network.layers
    )  # fmt: skip
    params = {name if n == first else n: p for n, p in s.network.params.items()}
    renamed = source(type(s.network)(layers, params))
    explain(renamed, scored(renamed, o), o, tmp_path, quiet)
    for chart in ("layers", "filters", "weights"):
        root = ElementTree.parse(tmp_path / f"{chart}.svg").getroot()
        assert name in {t.text for t in root.iter("{http://www.w3.org/2000/svg}text")}
    assert "<script>" not in (tmp_path / "explain.html").read_text()
