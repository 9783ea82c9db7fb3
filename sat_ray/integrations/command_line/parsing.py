"""The command line: RECIPE, dotted overrides of its config, and where to run.

Precedence is command line > --config FILE > recipe > default.
"""

import contextlib
import dataclasses
import difflib
import io
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import tyro

from sat_ray.activations.table import activation_table
from sat_ray.integrations.command_line.checks.sweep_folder import (
    check_not_a_file,
    folder_name,
    storage_root,
    tracking_of,
)
from sat_ray.integrations.command_line.option_values import (
    NUMBERS,
    UsageError,
    check_words,
    option_kinds,
    positionals,
    values_of,
)
from sat_ray.integrations.command_line.process.invocation import program
from sat_ray.integrations.mlflow.preflight import address_of
from sat_ray.storage.preflight import check_readable
from sat_ray.storage.store import Storage
from sat_ray.storage.uris import check_address, redacted
from sat_ray.sweep.config import Recipe, SweepConfig
from sat_ray.utils.import_string import confirm
from sat_ray.utils.names import RENAMED, check_name, suggest
from sat_ray.utils.serialization import content_hash, flatten

Given = TypeVar("Given")  # a dataclass of options
_NOTHING_NEAR = "no option has a similar name"
SHORT = {"--budget": "--cost.budget"}


def _help(text: str) -> Any:
    return tyro.conf.arg(help=text)


AllowCode = Annotated[
    tuple[str, ...],
    _help(
        "Names, module:function, of code that a stored file may name and this command may import."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where and how to run; no part of a result's identity."""

    config: Annotated[
        str,
        _help(
            "YAML file, local or s3://, with the config of a sweep (its config.yaml), in place of "
            "RECIPE; options of the command line replace its values."
        ),
    ] = ""
    allow_code: AllowCode = ()
    storage: Annotated[
        str,
        _help(
            "Folder or s3://bucket/prefix for everything the sweep writes; "
            "empty: SAT_RAY_STORAGE, else ./runs."
        ),
    ] = ""
    tracking_uri: Annotated[
        str,
        _help(
            "MLflow server or database; empty: MLFLOW_TRACKING_URI, else sqlite:///STORAGE/mlflow.db."
        ),
    ] = ""
    name: Annotated[
        str,
        _help(
            "Name of the sweep, its folder under STORAGE; "
            "empty: the recipe, plus a short hash of what was overridden."
        ),
    ] = ""
    on_code_change: Annotated[
        Literal["refuse", "reuse", "rerun"],
        _help(
            "Results made by other code than today's: refuse to start, reuse them, "
            "or move them aside and compute anew."
        ),
    ] = "refuse"
    accept_flagged: Annotated[
        str,
        _help(
            "Register the best model even if its robustness card says FLAG; "
            "give the reason, it is recorded with the model."
        ),
    ] = ""
    dry_run: Annotated[
        bool, _help("Print what would be done and what it would take, and stop: touches nothing.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Command:
    """A parsed command line: what to compute, and where."""

    config: SweepConfig
    name: str
    root: Storage
    tracking_uri: str
    artifact_root: str
    on_code_change: str
    accept_flagged: str
    dry_run: bool
    argv: tuple[str, ...]

    @property
    def storage(self) -> Storage:
        """Return the sweep's own folder."""
        return self.root.child(self.name)


def parse(
    argv: Sequence[str], recipes: Mapping[str, Recipe], *, default: str, about: str
) -> Command:
    """Read a command line; print help and exit 0 on --help.

    Raises UsageError or ValueError in one line.
    """
    config, base, given = parse_recipe(argv, recipes, default=default, about=about)
    return _resolve(config, base, given, argv)


def parse_recipe(
    argv: Sequence[str], recipes: Mapping[str, Recipe], *, default: str, about: str
) -> tuple[SweepConfig, SweepConfig, Options]:
    """Read RECIPE, overrides of its config, and options; return the recipe's own config second.

    Raises UsageError or ValueError in one line; exits 0 on --help.
    """
    _check_addresses(argv)
    options = Options()
    arguments = [_in_full(word) for word in argv]
    named = bool(arguments) and not arguments[0].startswith("-")
    recipe = arguments.pop(0) if named else None
    base = _base(recipe, arguments, recipes, default=default)
    known = flatten(dataclasses.asdict(base)) | vars(options)
    del known["recipe"]  # the first word, not an option
    _check_flags(arguments, known)
    kinds = option_kinds(base) | option_kinds(options)
    check_words(arguments, kinds)
    kind, defaults = _command_type(base, options)
    introduction = (
        f"Recipes: {', '.join(recipes)}. The values below are those of {base.recipe}; "
        "numbers may be written as k/255."
    )
    text = "\n\n".join([_headline(about), introduction, activation_table()])
    parsed = _parsed(
        kind, prog=program("[RECIPE]"), description=text, args=arguments, default=defaults
    )
    return _only(SweepConfig, parsed), recipes[base.recipe](), _only(Options, parsed)


def _base(
    recipe: str | None,
    arguments: Sequence[str],
    recipes: Mapping[str, Recipe],
    *,
    default: str,
) -> SweepConfig:
    """Return the config that options override: of --config FILE, else of the recipe."""
    files = values_of(arguments, "--config")
    if not files:
        name = default if recipe is None else recipe
        return recipes[check_name(name, recipes, field="recipe")]()
    if recipe is not None:
        raise UsageError(
            f"--config must stand without a RECIPE, got {recipe}; the file names its own"
        )
    from sat_ray.sweep.config.yaml_file import read_config

    check_readable(files[-1], field="--config")
    confirm(values_of(arguments, "--allow-code"))
    return read_config(files[-1], recipes)


def parse_options(argv: Sequence[str], options: Given, *, about: str) -> Given:
    """Read a command line that takes no recipe: the fields of a dataclass and nothing else.

    Errors and --help as in `parse_recipe`.
    """
    _check_addresses(argv)
    _check_flags(argv, vars(options))
    kinds = option_kinds(options)
    check_words(argv, kinds, allowed_before=positionals(options))
    found: Given = _parsed(
        type(options), prog=program(), description=_headline(about), args=argv, default=options
    )
    return found


def _only(kind: type[Given], parsed: Any) -> Given:
    fields: Any = kind
    return kind(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(fields)})


def _headline(about: str) -> str:
    return about.partition("\n")[0]


def _parsed(kind: Any, **settings: Any) -> Any:
    """Let tyro parse; turn its framed error into one line."""
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return tyro.cli(kind, registry=NUMBERS, **settings)
    except SystemExit as end:
        if end.code in (0, None):
            raise
    raise UsageError(_unframed(shown.getvalue())) from None


def _unframed(text: str) -> str:
    """Return the message of an error that tyro framed: in dashes where stdout is not UTF-8."""
    lines = (line.strip(" │╭╰╮╯─") for line in text.splitlines()[1:])
    said = itertools.dropwhile(_is_rule, lines)
    message = " ".join(itertools.takewhile(lambda line: not _is_rule(line), said))
    return re.sub(r"^Error parsing (?!--)[\w.-]+: ", "", message)


def _is_rule(line: str) -> bool:
    """Return whether a line of a frame holds no words."""
    return not line.strip("-")


def _in_full(word: str) -> str:
    flag, equals, value = word.partition("=")
    return f"{SHORT.get(flag, flag)}{equals}{value}"


def _check_addresses(words: Sequence[str]) -> None:
    """Raise ValueError where a word is an address with a login.

    The tracker's may have one: MLflow reads it there.
    """
    flag = ""
    for word in words:
        name, _, value = word.partition("=")
        if word.startswith("--"):
            flag = name
        given = value if word.startswith("--") else word
        if flag.replace("_", "-") != "--tracking-uri":
            check_address(given, field=flag.removeprefix("--") or "the address")


def _check_flags(arguments: Sequence[str], known: Mapping[str, Any]) -> None:
    for word in arguments:
        if not word.startswith("--") or word == "--help":
            continue
        name = word[2:].partition("=")[0].replace("-", "_")
        positive = re.sub(r"(^|\.)no_", r"\1", name)
        if name in RENAMED and RENAMED[name] in known:
            raise UsageError(
                f"--{name} is now --{RENAMED[name]}; write that instead".replace("_", "-")
            )
        if name not in known and not isinstance(known.get(positive), bool):
            raise UsageError(
                f"unknown option {word.partition('=')[0]}; {_closest(name, known)} (all: --help)"
            )


def _closest(name: str, known: Collection[str]) -> str:
    """Suggest the full names whose last part is nearest to the last part given."""
    tails: dict[str, list[str]] = {}
    for full in known:
        tails.setdefault(full.rpartition(".")[2], []).append(full)
    near = difflib.get_close_matches(name.rpartition(".")[2], list(tails), n=2, cutoff=0.7)
    found = [full for tail in near for full in tails[tail]]
    hint = (
        f"did you mean {' or '.join(f'--{full}' for full in found[:3])}?"
        if found
        else suggest(f"--{name}", [f"--{full}" for full in known], otherwise=_NOTHING_NEAR)
    )
    return hint.replace("_", "-")


def _command_type(base: SweepConfig, options: Options) -> tuple[Any, Any]:
    """Join the config's fields and the options into one flat command without a prefix."""
    fields: list[tuple[str, Any, Any]] = []
    for settings in (base, options):
        for field in dataclasses.fields(settings):
            kind: Any = (
                Annotated[field.type, tyro.conf.Suppress] if field.name == "recipe" else field.type
            )
            fields.append(
                (field.name, kind, dataclasses.field(default=getattr(settings, field.name)))
            )
    made = dataclasses.make_dataclass("Sweep", fields, frozen=True, kw_only=True)
    made.__doc__ = "\n"
    return made, made()


def _resolve(
    config: SweepConfig, base: SweepConfig, given: Options, argv: Sequence[str]
) -> Command:
    root = storage_root(given.storage)
    tracking = tracking_of(given.tracking_uri, root)
    address_of(tracking)  # refuses what no tracker has
    name = sweep_name(given.name, config, base)
    check_not_a_file(name, root, tracking)
    return Command(
        config=config,
        name=name,
        root=root,
        tracking_uri=tracking,
        artifact_root=root.full("mlartifacts") if tracking.startswith("sqlite") else "",
        on_code_change=given.on_code_change,
        accept_flagged=given.accept_flagged,
        dry_run=given.dry_run,
        argv=tuple(
            redacted(word) if "://" in word else word for word in argv
        ),  # the report shows it
    )


def sweep_name(given: str, config: SweepConfig, base: SweepConfig) -> str:
    """Return the name given, checked, or one made from what differs from the recipe's config."""
    if given:
        return folder_name(given)
    ours, theirs = flatten(config.semantic()), flatten(base.semantic())
    names = ours.keys() | theirs.keys()  # some settings are left out at their default
    overrides = {name: ours.get(name) for name in names if ours.get(name) != theirs.get(name)}
    return f"{config.recipe}-{content_hash(overrides)[:8]}" if overrides else config.recipe
