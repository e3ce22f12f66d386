"""A short slice of the fuzzing run, the hostile corpus, and that what is legal still loads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import seed
from tests.fuzz import bytes as raw
from tests.fuzz import structured
from tests.fuzz.__main__ import count, empty
from tests.fuzz.doors import RSS_LIMIT, Outcome, Worker
from tests.fuzz.hostile import LEGAL, STRUCTURES
from tests.fuzz.seeds import all_seeds, floats, quantised

# the slowest are left to the long list: they are refused for the same reason as others
SHORT = sorted(set(STRUCTURES) - {"just the pools", "empty attributes", "wide image", "many large images"})


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with Worker(tmp_path_factory.mktemp("fuzz")) as process:
        process.run(b"", seconds=120)  # loads the libraries
        yield process


def refused_or_accepted(outcome: Outcome) -> str:
    assert not outcome.failed, outcome
    assert outcome.rss < RSS_LIMIT
    return outcome.kind


@pytest.mark.parametrize("name", sorted(all_seeds()))
def test_seeds_load(worker: Worker, name: str) -> None:
    outcome = worker.run(all_seeds()[name].SerializeToString(), compare=True)
    assert outcome.kind == "accepted", outcome
    assert outcome.detail == ("float" if name in floats() else "quantised")


@pytest.mark.parametrize("name", SHORT)
def test_hostile_structures(worker: Worker, name: str) -> None:
    kind = refused_or_accepted(worker.run(STRUCTURES[name]()))
    if name in ("name of 4000", "unknown fields"):
        assert kind == "accepted"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(STRUCTURES) - set(SHORT)))
def test_large_hostile_structures(tmp_path: Path, name: str) -> None:
    with Worker(tmp_path) as process:
        process.run(b"", seconds=120)
        refused_or_accepted(process.run(STRUCTURES[name]()))


def test_structured_mutants(worker: Worker) -> None:
    models = all_seeds()
    kinds: Counter[str] = Counter()
    for number in range(60):
        label, data = structured.mutant(seed() * 10**7 + 5_000_000 + number, models)
        outcome = worker.run(data, compare=True)
        assert not outcome.failed, (number, label, outcome)
        kinds[outcome.kind] += 1
    assert kinds["refused"] > 20
    assert kinds["accepted"] > 2


def test_byte_mutants(worker: Worker) -> None:
    files = {name: m.SerializeToString() for name, m in all_seeds().items()}
    kinds: Counter[str] = Counter()
    for number in range(200):
        label, data = raw.mutant(seed() * 10**7 + 5_000_000 + number, files)
        outcome = worker.run(data)
        assert not outcome.failed, (number, label, outcome)
        kinds[outcome.kind] += 1
    assert kinds["refused"] > 60
    assert kinds["accepted"] > 2


def test_mutants_are_repeatable() -> None:
    models = quantised()
    files = {name: m.SerializeToString() for name, m in models.items()}
    for number in range(20):
        assert structured.mutant(number, models) == structured.mutant(number, models)
        assert raw.mutant(number, files) == raw.mutant(number, files)
    assert len({raw.mutant(k, files)[1] for k in range(50)}) > 40


def test_the_worker_tells_crashes_and_hangs_from_refusals(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The net has no hole: a worker that dies or sleeps is reported, and the next case gets a new one."""
    good = quantised()["cnn"].SerializeToString()
    assert worker.run(good, seconds=0.0).kind == "hang"
    assert worker.run(good, seconds=120).kind == "accepted"
    worker.kill()
    assert worker.run(good).kind == "crash"
    assert worker.run(good, seconds=120).kind == "accepted"


def test_counts() -> None:
    record = empty(3)
    count(record, "bytes", 0, "cnn: flip, cut", Outcome("refused", rss=5))
    count(record, "bytes", 1, "cnn: flip", Outcome("hang", "more than 10 s", rss=9))
    assert record["bytes"]["cases"] == 2
    assert record["bytes"]["outcomes"] == {"refused": 1, "hang": 1}
    assert record["bytes"]["changes"] == {"flip": {"refused": 1, "hang": 1}, "cut": {"refused": 1}}
    assert [f["case"] for f in record["bytes"]["failures"]] == [1]
    assert record["peak_rss"] == 9
    assert record["structured"]["cases"] == 0
    assert set(LEGAL) <= set(STRUCTURES)
