"""The recipe: every option of every stage, as frozen data read from TOML. Each flag of the CLI is one key here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from xdeploy.errors import UsageError, choose_from, not_there
from xdeploy.files import read_toml
from xdeploy.planoptions import PlanOptions as PlanOptions
from xdeploy.trainoptions import EcqOptions as EcqOptions
from xdeploy.trainoptions import RecoverOptions as RecoverOptions

COMPOSITES = (
    "epsilon", "epsilon-plus", "epsilon-plus-flat", "epsilon-plus-bounded", "epsilon-plus-wsquare", "alpha2-beta1",
    "alpha2-beta1-flat", "gamma", "gamma-flat", "gamma-bounded",
)  # fmt: skip
# a rule of LRP in a composite's groups
RULE = r"epsilon|z\+|flat|wsquare|bounded|gamma(?P<gamma>\d+(\.\d+)?)?|alpha(?P<alpha>\d{1,2})beta(?P<beta>\d{1,2})"

# C11 7.31: <stdatomic.h>, <threads.h>, <signal.h>, <locale.h>, <fenv.h> and <time.h> may take more names of these stems
_RESERVED_PREFIXES = frozenset({"atomic", "memory", "cnd", "mtx", "thrd", "tss", "sig", "lc", "fe", "time"})


# what a value must be, in TOML's words, by its type in Python
_WORDS: dict[Any, str] = {
    bool: "a boolean, true or false", int: "an integer", float: "a float or integer", str: "a string",
    tuple: "an array", Mapping: "a table",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class DataOptions:
    """[data] How samples become model inputs and how they are split."""

    mean: tuple[float, ...] = ()  # per channel, for pixels in 0..1; empty: the model's own, else none
    std: tuple[float, ...] = ()
    validation: float = 0.2  # share of the training data held out to select with
    calibration: int = 512  # training samples that set the activation ranges
    golden: int = 4  # samples carried along to prove every later stage


@dataclass(frozen=True, slots=True)
class RelevanceOptions:
    """[relevance] Which method scores the network."""

    method: str = "lrp"  # a name in the registry of relevance methods
    # of lrp: one of COMPOSITES, or "groups:" and the rules of the first quarter of the hidden layers, the middle ones,
    # the last quarter, and the fully connected layers, for example "groups:epsilon,z+,alpha2beta1,epsilon"
    composite: str = "epsilon"
    epsilon: float = 0.1  # of lrp's epsilon rule and of its weight scores
    stabiliser: str = "relative"  # epsilon is times the root mean square of each sample's z | absolute: as it is
    samples: int = 256  # training samples scored
    target: str = "label"  # logit explained: of the label | predicted | difference: label minus logsumexp of the others
    aggregate: str = "magnitude"  # over samples, sum of: magnitude | signed | square | sensitivity, (r / w)^2
    steps: int = 16  # of integrated-gradients and conductance: pieces of the path


@dataclass(frozen=True, slots=True)
class CompressOptions:
    """[compress] How codes are found."""

    codebook_weighting: float = 0.5  # exponent of the sensitivity that weighs k-means; 0: unweighted
    activation_percentile: float = 99.99  # of the calibration values; 100: min/max
    scale: str = "channel"  # what has a weight scale of its own: channel | tensor, the whole layer
    # scales of 5 bits, biases in multiples of a power of two; None: where ecq or a density is used
    compact: bool | None = None
    # codes below 8 bits are chosen one after the other for the layer's outputs over calibration samples, not each for
    # its weight, and zeros made up for, before training begins; None: where neither ecq nor training chooses them
    reconstruct: bool | None = None
    # without fine-tuning, scales and biases give every channel's output the mean and deviation of the float network's
    restore: bool = True
    further: bool = False  # a file that is quantised already is taken as its float view and compressed once more


@dataclass(frozen=True, slots=True)
class LowerOptions:
    """[lower] What may stay in float where it has no integer form, and what the file may take from elsewhere."""

    fallback: tuple[str, ...] = ()  # names of nodes that may run in float, on hosts and Cortex-A
    fail_on_fallback: bool | None = None  # refuse any float part; None: on firmware targets only
    external_data: bool = False  # an ONNX file may keep tensors in other files of its own folder


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """[build] How a program uses memory and threads."""

    # the first layers in bands of rows: auto (as far as plan.ram or the target's RAM needs it) | off | min | how many
    stream: int | str = "auto"
    # 2, for hosts and Cortex-A under Linux: large layers are built as two halves, and xd_<model>_set_threads(2) lets a
    # second thread compute one of them where that is faster
    threads: int = 1


@dataclass(frozen=True, slots=True)
class PackageOptions:
    """[package] What the C package looks like."""

    form: str = "tuned"  # tuned: kernels by LLVM for one core; portable: C99 only
    name: str = ""  # of the model in C; empty: derived from the model
    prefix: str = "xd"  # of every symbol, macro and file of the package


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """[bench] What is run on the artifact."""

    repeats: int = 20  # timed calls of the host library
    accuracy: bool = True  # the whole test set through the deployed code on the host


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """[tune] How kernels are chosen among those that a node can have."""

    effort: str = "off"  # off: by cost formulas | quick: the likely ones are measured | full: all are
    objective: str = "instructions"  # what is made small: instructions | cycles | flash
    flash: int | None = None  # bytes of code and constants; None: the target's
    ram: int | None = None  # bytes of arena; None: the target's


@dataclass(frozen=True, slots=True)
class Recipe:
    """All options of one run."""

    seed: int = 0
    threads: int = 2  # that torch splits its sums over: float sums depend on it, so it is not the machine's choice
    data: DataOptions = DataOptions()
    relevance: RelevanceOptions = RelevanceOptions()
    plan: PlanOptions = field(default_factory=PlanOptions)
    compress: CompressOptions = CompressOptions()
    recover: RecoverOptions = field(default_factory=RecoverOptions)
    ecq: EcqOptions = field(default_factory=EcqOptions)
    lower: LowerOptions = LowerOptions()
    tune: TuneOptions = TuneOptions()
    build: BuildOptions = BuildOptions()
    package: PackageOptions = PackageOptions()
    bench: BenchOptions = BenchOptions()

    def __post_init__(self) -> None:
        _check(self)

    def with_options(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with dotted keys changed, e.g. {"plan.flash": 65536}.

        Raises:
            UsageError: an unknown key, a wrong type or value.
        """
        recipe = self
        sections = [x.name for x in fields(Recipe)]
        for key, value in changes.items():
            section, _, option = key.partition(".")
            if section not in sections or (option and not is_dataclass(getattr(recipe, section))):
                raise choose_from("recipe section or key", section, sections)
            if not option:
                recipe = replace(recipe, **{section: _cast(Recipe, section, value, key)})
                continue
            part = getattr(recipe, section)
            recipe = replace(recipe, **{section: replace(part, **{option: _cast(type(part), option, value, key)})})
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """JSON form, all defaults resolved."""
        return asdict(self)


def load_recipe(path: Path | None) -> Recipe:
    """Read a recipe; unknown keys are refused with their line.

    Raises:
        UsageError: unreadable file, TOML error, unknown key, wrong type or value.
    """
    if path is None:
        return Recipe()
    try:
        text = path.read_text(encoding="utf-8")
        value = read_toml(text)
    except FileNotFoundError:
        raise not_there(path, "recipe") from None
    except OSError as error:
        raise UsageError(f"recipe {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"recipe {path}: {error}") from None
    changes: dict[str, Any] = {}
    sections = {f.name: f for f in fields(Recipe)}
    for key, entry in value.items():
        if key not in sections:
            raise _unknown(path, text, key, list(sections))
        if isinstance(entry, dict):
            allowed = [f.name for f in fields(getattr(Recipe(), key))] if is_dataclass(getattr(Recipe(), key)) else []
            for option, setting in entry.items():
                if option not in allowed:
                    raise _unknown(path, text, option, allowed, key)
                changes[f"{key}.{option}"] = setting
        else:
            changes[key] = entry
    try:
        return Recipe().with_options(changes)
    except UsageError as error:
        raise UsageError(f"recipe {path}: {error.message}", hint=error.hint) from None


def _unknown(path: Path, text: str, key: str, allowed: list[str], section: str = "") -> UsageError:
    lines = [i for i, line in enumerate(text.splitlines(), 1) if line.strip().lstrip("[").startswith(key)]
    where = f"{path}:{lines[0]}" if lines else str(path)
    error = choose_from(f"recipe key in [{section}]" if section else "recipe key", key, allowed)
    return UsageError(f"{where}: {error.message}", hint=error.hint)


def _cast(owner: type, option: str, value: Any, key: str) -> Any:
    """Check `value` against the annotation of owner.option; lists become tuples, ints become floats."""
    hints = get_type_hints(owner)
    if option not in hints:
        raise choose_from("recipe key", key, list(hints))
    hint = hints[option]
    kinds = [k for k in (get_args(hint) if isinstance(hint, UnionType) else (hint,))]
    for kind in kinds:
        if kind is type(None) and value is None:
            return None
        if get_origin(kind) is tuple and isinstance(value, list | tuple):
            inner = get_args(kind)[0]
            return tuple(_cast_scalar(inner, v, key) for v in value)
        if get_origin(kind) is not None and get_origin(kind) is not tuple and isinstance(value, Mapping):
            return dict(value)
        if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, kind):
            return value
    scalars = [k for k in kinds if k is not type(None)]
    return _cast_scalar(next((k for k in scalars if type(value) is k), scalars[0]), value, key)


def _cast_scalar(kind: Any, value: Any, key: str) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    name = _WORDS.get(get_origin(kind) or kind, str(kind))
    hint = f"in TOML: {key.rpartition('.')[2]} = [...]" if get_origin(kind) is tuple else None
    raise UsageError(f"recipe key {key!r} must be {name}, got {value!r}", hint=hint)


def _check(recipe: Recipe) -> None:
    """Ranges of values that types do not tell."""
    check_composite(recipe.relevance.composite)
    _one_of("relevance.stabiliser", recipe.relevance.stabiliser, ("relative", "absolute"))
    _one_of("relevance.target", recipe.relevance.target, ("label", "predicted", "difference"))
    _one_of("relevance.aggregate", recipe.relevance.aggregate, ("magnitude", "signed", "square", "sensitivity"))
    _one_of("compress.scale", recipe.compress.scale, ("channel", "tensor"))
    stream = recipe.build.stream
    if isinstance(stream, str):
        _one_of("build.stream", stream, ("auto", "off", "min"))
    elif not 2 <= stream <= 4096:
        raise UsageError(f"recipe key 'build.stream' must be auto, off, min or 2..4096 bands, got {stream}")
    if recipe.compress.reconstruct and recipe.ecq.method != "off":
        raise UsageError(
            f"recipe keys 'compress.reconstruct' and 'ecq.method' = {recipe.ecq.method!r}: both would choose the codes",
            hint='set ecq.method = "off", or leave compress.reconstruct out',
        )
    _one_of("package.form", recipe.package.form, ("tuned", "portable"))
    _check_prefix(recipe.package.prefix)
    _one_of("tune.effort", recipe.tune.effort, ("off", "quick", "full"))
    _one_of("tune.objective", recipe.tune.objective, ("instructions", "cycles", "flash"))
    limits = {
        "threads": (recipe.threads, 1, 256), "build.threads": (recipe.build.threads, 1, 2),
        "data.validation": (recipe.data.validation, 0.0, 0.9), "plan.max_drop": (recipe.plan.max_drop, 0.0, 100.0),
        "data.calibration": (recipe.data.calibration, 1, 10**9), "data.golden": (recipe.data.golden, 1, 1000),
        "relevance.samples": (recipe.relevance.samples, 1, 10**9),
        "relevance.epsilon": (recipe.relevance.epsilon, 0, 1000), "relevance.steps": (recipe.relevance.steps, 1, 4096),
        "bench.repeats": (recipe.bench.repeats, 1, 10**9),
        "compress.activation_percentile": (recipe.compress.activation_percentile, 50.0, 100.0),
        "compress.codebook_weighting": (recipe.compress.codebook_weighting, 0.0, 4.0),
    }  # fmt: skip
    for key, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise UsageError(f"recipe key {key!r} must be in {low}..{high}, got {value}")


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise choose_from(f"value of {key}", value, allowed)


def check_composite(text: str) -> None:
    """A name of COMPOSITES, or "groups:" and four rules."""
    groups, found, names = text.partition("groups:")
    if not found or groups:
        return _one_of("relevance.composite", text, (*COMPOSITES, "groups:<four rules>"))
    rules = [x.strip() for x in names.split(",")]
    found_rules = [(x, re.fullmatch(RULE, x)) for x in rules]
    wrong = [x for x, m in found_rules if m is None or (m["alpha"] and int(m["alpha"]) != int(m["beta"]) + 1)]
    if len(rules) == 4 and not wrong:
        return None
    told = f"{wrong[0]!r} is no rule" if wrong else f"it names {len(rules)} rules"
    raise UsageError(
        f"recipe key 'relevance.composite' = {text!r}: {told}; 'groups:' takes four rules of epsilon, z+, gamma, "
        "gamma<number>, alpha<m>beta<m - 1>, flat, wsquare, bounded",
        hint="such as 'groups:epsilon,z+,alpha2beta1,epsilon': first quarter, middle, last quarter, fully connected",
    )


def _check_prefix(prefix: str) -> None:
    """Names in C begin with it, so it has to make identifiers that neither C nor its library keeps for itself."""
    if re.fullmatch(r"[a-z](?:_?[a-z0-9]){0,15}", prefix) is None:
        raise UsageError(
            f"recipe key 'package.prefix' must be lower-case letters, digits and single underscores, a letter first, "
            f"at most 16 letters and digits, got {prefix!r}",
            hint="names in C are made of it: acme gives acme_<model>_run and ACME_<MODEL>_ARENA_BYTES",
        )
    if prefix in _RESERVED_PREFIXES:
        raise UsageError(f"recipe key 'package.prefix': names that begin with {prefix}_ belong to the C library")
