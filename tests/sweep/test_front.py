"""The front against dominance by brute force, and its page."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from tests.conftest import seed
from xdeploy.errors import UsageError
from xdeploy.sweep.front import Point, pareto
from xdeploy.sweep.objectives import objectives_of
from xdeploy.sweep.page import render


@pytest.mark.parametrize("names", [("accuracy",), ("accuracy", "flash"), ("flash", "accuracy", "instructions")])
@pytest.mark.parametrize("levels", [3, 1000])
def test_the_front_is_what_nobody_dominates(names: tuple[str, ...], levels: int) -> None:
    rng = np.random.default_rng([seed(), levels, len(names)])
    values = rng.integers(0, levels, (120, len(names))).astype(float)
    gain = values * [1.0 if n == "accuracy" else -1.0 for n in names]
    beaten = ((gain[:, None] >= gain[None]).all(2) & (gain[:, None] > gain[None]).any(2)).any(0)
    first = [not (values[:i] == values[i]).all(1).any() for i in range(len(values))]
    expected = {i for i in range(len(values)) if not beaten[i] and first[i]}
    points = [Point(i, tuple(map(float, v))) for i, v in enumerate(values)]
    found = pareto([points[i] for i in rng.permutation(len(points))], objectives_of(names))
    assert {p.position for p in found} == expected
    assert len(found) == len(expected)


def test_objectives_are_named() -> None:
    with pytest.raises(UsageError, match="unknown objective"):
        objectives_of(["speed"])
    with pytest.raises(UsageError, match="each once"):
        objectives_of(["flash", "flash"])


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("href", "xlink:href", "src")]


def _front(reason: str) -> dict[str, Any]:
    def q(value: float) -> dict[str, Any]:
        return {"value": value, "unit": "byte", "how": "measured"}

    values = [{"accuracy": q(90.0 + i), "flash": q(1000 * (i + 1))} for i in range(3)]
    trials = [
        {"trial": i, "target": "cortex-m4", "state": "complete", "options": {"plan.flash": i}, "values": v,
         "reason": None, "on_front": i < 2} for i, v in enumerate(values)
    ]  # fmt: skip
    trials.append({"trial": 3, "target": "cortex-m4", "state": "pruned", "options": {}, "values": None,
                   "reason": reason, "on_front": False})  # fmt: skip
    members = [
        {"trial": i, "options": {"plan.flash": i}, "values": values[i], "test_accuracy": q(89.0),
         "report": f"trials/{i:04}/report.html"} for i in range(2)
    ]  # fmt: skip
    return {
        "study": {"trials": {"complete": 3, "pruned": 1}, "sampler": "grid", "seed": 0, "threads": 1, "boards": {}},
        "objectives": [{"name": "accuracy", "direction": "maximize"}, {"name": "flash", "direction": "minimize"}],
        "targets": ["cortex-m4"], "front": {"cortex-m4": members}, "trials": trials,
    }  # fmt: skip


def test_the_page_shows_the_front_and_runs_nothing() -> None:
    page = render(_front("<script>alert(1)</script> fits"))
    parser = _Links()
    parser.feed(page)
    assert "script" not in parser.tags
    reports = [x for x in parser.links if x.endswith("report.html")]
    assert reports.count("trials/0000/report.html") == reports.count("trials/0001/report.html") == 2  # table, chart
    assert not [x for x in parser.links if "//" in x and not x.startswith("#")]
    assert page.count("<svg") == 1
    assert render(_front("a")) == render(_front("a"))
