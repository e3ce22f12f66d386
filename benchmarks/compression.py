"""What every method of compression buys: headline recipes, and all methods beside each other.

Every row comes out of the whole flow (`xdeploy.pipeline.run`): compressed, exported, lowered, built for x86-64, the
built code bit-exact, and its accuracy counted on the test data by that code. Rows are

    headline/<network>/<recipe>/<seed>                          a file of recipes/, in results/compression.json
    methods/<network>/<kind>/<method>/<point>/<training>/<seed> a cell of the comparison, in results/methods.json

Rows that are there for the same recipe, seed and float weights are kept, so a killed run goes on where it ended.

    python benchmarks/compression.py --list
    python benchmarks/compression.py --only 'methods/digits/*' --work out-compression
    python benchmarks/compression.py --only 'headline/resnet20/*' --shared ../shared --work out-compression
    python benchmarks/compression.py --tables
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from campaign import charts, tables
from campaign.cells import KINDS, METHODS, Options, Scale, Tuning, Variants, cell, points_of
from campaign.networks import NETWORKS, Place, Ready
from campaign.rows import Job, Results, key_of, measure, validation_of

from xdeploy.errors import XdeployError
from xdeploy.model.source import load_source
from xdeploy.recipe import DataOptions, Recipe, load_recipe

HERE = Path(__file__).resolve().parent
RECIPES = HERE / "recipes"
# networks that have recipes of their own, by the beginning of their names
HEADLINE = ("resnet20", "spoken", "vgg16")
PLAIN, TUNED = "plain", "tuned"
# what is fine-tuned in the comparison: network -> (training, methods, only the middle point)
TRAINED: dict[str, tuple[Tuning, tuple[str, ...], bool]] = {
    "digits": (Tuning(), METHODS, False),
    "spoken": (Tuning(lr=0.001), ("lrp", "lrp-share", "ecqx", "ecq", "hessian", "lamp", "magnitude", "random"), True),
}
COMPARED = ("digits", "spoken", "resnet20")
SEEDS = {"digits": (0, 1, 2), "spoken": (0,), "resnet20": (0,)}  # of the comparison


@dataclass(frozen=True, slots=True)
class Spot:
    """A cell of the comparison at one seed."""

    network: str
    kind: str
    method: str
    point: float
    tuned: bool
    seed: int

    @property
    def id(self) -> str:
        """methods/<network>/<kind>/<method>/<point>/<training>/<seed>."""
        word = TUNED if self.tuned else PLAIN
        return f"methods/{self.network}/{self.kind}/{self.method}/{self.point:g}/{word}/{self.seed}"


@dataclass(frozen=True, slots=True)
class Headline:
    """A recipe file on a network at one seed."""

    network: str
    recipe: Path
    seed: int

    @property
    def id(self) -> str:
        """headline/<network>/<recipe>/<seed>."""
        return f"headline/{self.network}/{self.recipe.stem}/{self.seed}"


def headlines(seeds: Sequence[int] | None) -> Iterator[Headline]:
    """A network's own recipes on it; those of the papers on the digits first, then on every other network once."""
    for path in sorted(RECIPES.glob("*.toml")):
        own = [n for n in HEADLINE if path.stem.startswith(f"{n}-")]
        for network in own or NETWORKS:
            usual = (0, 1, 2) if own or network == "digits" else (0,)
            for seed in usual if seeds is None else seeds:
                yield Headline(network, path, seed)


def spots(seeds: Sequence[int] | None) -> Iterator[Spot]:
    """All cells of the comparison, those without training first."""
    for network in COMPARED:
        for tuned in (False, True):
            if tuned and network not in TRAINED:
                continue
            for seed in SEEDS[network] if seeds is None else seeds:
                for kind in KINDS:
                    yield from _spots_of(network, kind, tuned, seed)


def _spots_of(network: str, kind: str, tuned: bool, seed: int) -> Iterator[Spot]:
    _, methods, middle = TRAINED.get(network, (None, METHODS, False)) if tuned else (None, METHODS, False)
    points = points_of(network, kind)[1:2] if middle else points_of(network, kind)
    for method in METHODS:
        if method in methods:
            yield from (Spot(network, kind, method, point, tuned, seed) for point in points)


class Program:
    """The rows that were asked for, one after another."""

    def __init__(self, place: Place, results: Path, further: int | None) -> None:
        self.place, self.further, self.folder = place, further, results
        self.headline, self.methods = Results(results / "compression.json"), Results(results / "methods.json")
        self.ready: dict[tuple[str, int], Ready] = {}
        self.scales: dict[tuple[str, int], Scale] = {}

    def _ready(self, network: str, seed: int) -> Ready:
        key = network, seed
        if key not in self.ready:
            self.ready[key] = Ready(NETWORKS[network], self.place, seed, self.further)
        return self.ready[key]

    def _scale(self, network: str, seed: int) -> Scale:
        key = network, seed
        if key not in self.scales:
            ready = self._ready(network, seed)
            given = ready.given
            source = load_source(ready.net.model, ready.weights, given.data, given.test_data, DataOptions(), seed)
            self.scales[key] = Scale(source.network)
        return self.scales[key]

    def run(self, item: Headline | Spot) -> str:
        """Make one row, unless it is kept; what is told about it."""
        if isinstance(item, Headline):
            recipe = load_recipe(item.recipe).with_options(
                {"seed": item.seed, "threads": NETWORKS[item.network].threads}
            )
            job = Job(item.id, item.network, method_of(recipe), item.recipe.stem, item.seed, recipe, {})
            return self._measured(job, self.headline)
        found = cell(item.method, item.kind, item.point, self._scale(item.network, item.seed))
        if isinstance(found, str):
            return self._no_number(item, found)
        name = self._chosen(item, found)
        options = found[name] | (TRAINED[item.network][0].options() if item.tuned else {})
        shown = {"kind": item.kind, "point": item.point, "tuned": item.tuned, "variant": name}
        job = Job(item.id, item.network, item.method, item.kind, item.seed, _recipe(options, item.seed), shown)
        return self._measured(job, self.methods)

    def _measured(self, job: Job, results: Results) -> str:
        ready = self._ready(job.network, job.seed)
        row = results.kept(job.id, key_of(job, ready.weights))
        word = "kept" if row else "new"
        if row is None:
            row = measure(job, ready)
            results.put(row)
        return f"{word} {told(row)}"

    def _no_number(self, item: Spot, reason: str) -> str:
        id = f"methods/{item.network}/{item.kind}/{item.method}"
        row = {"id": id, "key": "", "network": item.network, "kind": item.kind, "method": item.method, "reason": reason}
        if self.methods.rows.get(id) != row:
            self.methods.put(row)
        return f"none {id}: {reason}"

    def _chosen(self, item: Spot, found: Variants) -> str:
        """The variant that is best on validation data at the middle point of seed 0, without training."""
        if len(found) == 1:
            return next(iter(found))
        place, point = f"{item.network}/{item.kind}/{item.method}", points_of(item.network, item.kind)[1]
        middle = cell(item.method, item.kind, point, self._scale(item.network, 0))
        assert not isinstance(middle, str)
        ready = self._ready(item.network, 0)
        jobs = {
            n: Job("", item.network, item.method, n, 0, _recipe(o, 0), {"kind": item.kind}) for n, o in middle.items()
        }
        keys = {n: key_of(job, ready.weights) for n, job in jobs.items()}
        kept = self.methods.chosen.get(place)
        if kept is None or kept["keys"] != keys:
            found_here = {n: validation_of(job, ready) for n, job in jobs.items()}
            best = max(found_here, key=lambda n: -1.0 if found_here[n] is None else float(found_here[n] or 0.0))
            kept = {"variant": best, "point": point, "validation": found_here, "keys": keys}
            self.methods.chosen[place] = kept
            self.methods.save()
        return str(kept["variant"])

    def summary(self) -> str:
        """Tables of all rows there are; written beside them, with the charts."""
        rows, cells = list(self.headline.rows.values()), list(self.methods.rows.values())
        parts = {
            "Recipes": tables.headline(rows) if rows else "",
            "Methods": tables.comparison(cells),
            "Where relevance wins, and where it does not": tables.verdicts(cells) if cells else "",
            "Explanations after compression": tables.survival([*rows, *cells]),
        }
        text = "\n\n".join(f"## {title}\n\n{part}" for title, part in parts.items() if part) + "\n"
        if cells:
            charts.draw(cells, self.folder)
        return text


def _recipe(options: Options, seed: int) -> Recipe:
    """The recipe of a cell; one thread, as cells train little or nothing and rows depend on the number."""
    return Recipe().with_options(options | {"seed": seed, "threads": 1})


def method_of(recipe: Recipe) -> str:
    """What a recipe does, in a few words."""
    parts = [recipe.relevance.method]
    parts += ["filters"] if recipe.plan.channels is not None else []
    parts += ["weights"] if recipe.plan.densities else []
    parts += [recipe.ecq.method] if recipe.ecq.method != "off" else []
    return " + ".join([*parts, f"{recipe.plan.rule} over {'/'.join(recipe.plan.formats)}"])


def told(row: dict[str, Any]) -> str:
    """A row in one line."""
    if not tables.has_figures(row):
        return f"{row['id']}: {row['reason']}"
    size, loss = row["coded_bytes"]["value"], row["loss"]
    return (
        f"{row['id']}: {row['accuracy']['value']:.2f} % of {row['accuracy']['n']}, loss {loss:+.2f}, "
        f"coded {size:,} bytes (1/{row['coded_ratio']:.1f}), packed 1/{row['packed_ratio']:.1f}"
    )


def selected(only: Iterable[str], seeds: Sequence[int] | None) -> list[Headline | Spot]:
    """The rows whose id is, or begins like, one of the patterns; all without any."""
    everything: list[Headline | Spot] = [*headlines(seeds), *spots(seeds)]
    patterns = list(only)
    return [x for x in everything if not patterns or any(fnmatch(x.id, p) or fnmatch(x.id, f"{p}/*") for p in patterns)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared", help="folder with data/ and models/")
    parser.add_argument("--work", type=Path, default=Path("out-compression"), help="float weights and run folders")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where rows, tables and charts go")
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="rows by id; repeatable")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of each row's usual ones")
    parser.add_argument("--further", type=int, help="epochs that the float network is trained on for")
    parser.add_argument("--list", action="store_true", help="the ids, nothing is run")
    parser.add_argument("--tables", action="store_true", help="tables and charts of the rows there are, nothing is run")
    args = parser.parse_args(arguments)
    chosen = [] if args.tables else selected(args.only, args.seeds)
    if args.list:
        print(*(x.id for x in chosen), sep="\n")
        return 0
    if not chosen and not args.tables:
        parser.error(f"no row is called {' or '.join(args.only)}; --list tells the names")
    program = Program(Place(args.shared.resolve(), args.work.resolve()), args.results, args.further)
    failed = 0
    for k, item in enumerate(chosen, 1):
        try:
            word = program.run(item)
        except (XdeployError, RuntimeError) as error:  # the other rows are worth having
            failed += 1
            word = f"FAILED {item.id}: {error}"
        print(f"[{k}/{len(chosen)}] {word}", file=sys.stderr, flush=True)
    text = program.summary()
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "compression.md").write_text(text, encoding="utf-8")
    print(text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
