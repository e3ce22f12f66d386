"""What changed against a baseline: layers sorted by hand, formats, what is not comparable."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gate.conftest import LAYERS, SHA, artifact
from xdeploy.gate import Limits, check_artifact, summary


def test_an_equal_baseline_is_no_change(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "cortex-m4")
    result = check_artifact(folder, Limits(growth=0.0, drop=1.0), folder)
    assert result.passed
    found = result.targets[0].change
    assert found is not None
    assert found.apart == () == found.layers == result.apart
    assert all(f.before == f.now for f in found.figures)
    text = summary.render(result)
    assert "No layer changed." in text
    assert "Not comparable" not in text
    assert text.count("| none |") == len(found.figures)


def test_layers_by_the_size_of_their_change(tmp_path: Path) -> None:
    old = artifact(tmp_path / "old" / "cortex-m4")
    changed = (
        ("stem", LAYERS[0][1], 600_000, 1_000),
        ("body", "conv2d_s8_s4_4x2__armv7em", 250_000, 450),
        ("new", "add_s8_-_1x1__tir", 60_000, 0),
    )
    new = artifact(tmp_path / "new" / "cortex-m4", layers=changed)
    found = check_artifact(new, Limits(), old).targets[0].change
    assert found is not None
    assert [x.origin for x in found.layers] == ["head", "new", "body"]  # by 100,000, 60,000 and 50,000
    head, added, body = found.layers
    assert head.instructions == (100_000, None)
    assert head.kernel == ("linear_s8_s4_1x2__tir", None)
    assert added.bytes == (None, 0)
    assert body.format == ("c4s8", "int4")
    text = summary.render(check_artifact(new, Limits(), old))
    assert "Weight formats that changed: `body` `c4s8` → `int4`." in text
    assert text.index("`head`") < text.index("`new`") < text.index("`body`")
    assert "300,000 → 250,000 (-16.7 %)" in text


def test_bands_of_a_layer_are_one_layer(tmp_path: Path) -> None:
    banded = (*((f"stem [band {i}]", LAYERS[0][1], 300_000, 500) for i in range(2)), *LAYERS[1:])
    old, new = artifact(tmp_path / "old" / "cortex-m4"), artifact(tmp_path / "new" / "cortex-m4", layers=banded)
    found = check_artifact(new, Limits(), old).targets[0].change
    assert found is not None
    assert found.layers == ()


def test_a_comment_stays_short(tmp_path: Path) -> None:
    """A thousand layers with long names, on six targets, all changed: what GitHub takes is 65,536 characters."""
    for side, count in (("old", 10), ("new", 20)):
        rows = tuple(
            (f"layer{i}" * 100, f"conv2d_s8_s{4 if side == 'old' else 8}_{i}__x", count + i, count) for i in range(1000)
        )
        for target in range(6):
            artifact(tmp_path / side / f"t{target}", layers=rows)
    text = summary.render(check_artifact(tmp_path / "new", Limits(growth=2), tmp_path / "old"))
    assert len(text) < 30_000
    assert "10 of 1000 that changed" in text
    assert "and 990 more" in text


@pytest.mark.parametrize(
    ("manifest", "word"),
    [({"isa": "mve"}, "ISA"), ({"form": "portable"}, "form"), ({"tools": {"xdeploy": "0.0.9"}}, "tool version"),
     ({"provenance": {"model": {"name": "net", "sha256": "cd" * 32}}}, "model")],
)  # fmt: skip
def test_what_is_not_comparable_is_said_first(tmp_path: Path, manifest: dict[str, object], word: str) -> None:
    old = artifact(tmp_path / "old" / "cortex-m4", manifest=manifest)
    new = artifact(tmp_path / "new" / "cortex-m4")
    result = check_artifact(new, Limits(growth=1), old)
    assert result.passed
    assert result.targets[0].change is not None
    (told,) = result.targets[0].change.apart
    assert told.startswith(f"another {word}: ")
    text = summary.render(result)
    assert text.index("Not comparable") < text.index("| figure |")
    if word == "model":
        assert SHA[:12] in told
        assert "cdcdcdcdcdcd" in told


def test_targets_of_one_side_only(tmp_path: Path) -> None:
    artifact(tmp_path / "old" / "cortex-m4")
    artifact(tmp_path / "old" / "cortex-m7")
    artifact(tmp_path / "new" / "cortex-m4")
    artifact(tmp_path / "new" / "cortex-m55")
    result = check_artifact(tmp_path / "new", Limits(), tmp_path / "old")
    assert result.apart == ("cortex-m55 is not in the baseline", "cortex-m7 is in the baseline only")
    assert [t.change is None for t in result.targets] == [False, True]
    only = check_artifact(tmp_path / "new", Limits(), tmp_path / "old", targets=["cortex-m4"])
    assert only.apart == ()


def test_other_samples_are_told(tmp_path: Path) -> None:
    old = artifact(tmp_path / "old" / "cortex-m4", accuracy=(90.0, 90.0, 100))
    new = artifact(tmp_path / "new" / "cortex-m4", accuracy=(91.0, 90.0, 200))
    found = check_artifact(new, Limits(), old).targets[0].change
    assert found is not None
    assert found.apart == ("other test data: 100 samples in the baseline, 200 now",)
    assert (found["accuracy"].before, found["accuracy"].now) == (90.0, 91.0)
