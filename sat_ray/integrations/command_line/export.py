"""Export a model to a file that needs none of this code, with a parity check and a model card."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import tyro

from sat_ray.integrations.command_line.checks.sweep_folder import require_there, storage_root
from sat_ray.integrations.command_line.option_values import UsageError
from sat_ray.integrations.command_line.parsing import AllowCode, parse_options
from sat_ray.integrations.command_line.process.exit_status import exit_status
from sat_ray.integrations.command_line.process.invocation import spelled
from sat_ray.storage.json_shape import misfit
from sat_ray.storage.preflight import check_readable
from sat_ray.storage.sealed import read_perhaps_sealed
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.config.stored import stored_config
from sat_ray.sweep.plan.datasets import dataset_uri
from sat_ray.sweep.records.shapes import Card
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.status import sweeps_in
from sat_ray.sweep.tasks import SEARCH, TRAIN, Dataset
from sat_ray.utils.bounds import Bounds, check_fields
from sat_ray.utils.import_string import confirm
from sat_ray.utils.names import check_name, printable
from sat_ray.utils.serialization import to_json


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which model, as what, and where to."""

    model: tyro.conf.Positional[str] = "digits"
    """A sweep, for its champion, or the folder of a checkpoint."""
    storage: str = ""
    """Folder or s3://bucket/prefix of the sweeps; empty: SAT_RAY_STORAGE, else ./runs."""
    format: Literal["pt2", "onnx"] = "pt2"
    """pt2 (torch.export) or onnx."""
    out: str = ""
    """File to write; the card goes beside it, with .md in place of the ending."""
    allow_code: AllowCode = ()
    image_shape: Annotated[tuple[int, ...], Bounds(1, 4096)] = ()
    """C H W of the images, for a checkpoint that lies outside its sweep's folder."""

    def __post_init__(self) -> None:
        check_fields(self, prefix="--")


@dataclass(frozen=True)
class Found:
    """A checkpoint and what its sweep says about it; None where there is no such sweep."""

    checkpoint: str
    sweep: Storage | None
    board: dict[str, Any] | None
    config: SweepConfig | None


class _Row(TypedDict):
    checkpoint: str
    outcomes: str


class _Board(TypedDict):
    """What finds a model and its card in a leaderboard."""

    rows: list[_Row]


def export(asked: Asked) -> None:
    """Write the file and its card, and print what was written."""
    from sat_ray.checkpoint import load_model
    from sat_ray.models.export import FORMATS, export_model

    if not asked.out:
        raise UsageError(
            f"--out is empty; give the file to write, for example --out model.{asked.format}"
        )
    check_name(asked.format, FORMATS, field="format")
    confirm(asked.allow_code)
    found = locate(asked.model, storage_root(asked.storage))
    model = load_model(found.checkpoint, expected_sha256=recorded_digest(found))
    shape = asked.image_shape or image_shape(found)
    data, parity = export_model(model, shape=shape, kind=asked.format)
    out = Path(asked.out).expanduser()
    text = _card_text(found, out.name, kind=asked.format, shape=shape, parity=str(parity))
    card = out.with_suffix(".md")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(data)
    card.write_text(text)
    print(printable(found.checkpoint))
    print(printable(f"{out}: {len(data):,} bytes; {parity}"))
    print(printable(f"{card}: its card"))


def _card_text(found: Found, file: str, *, kind: str, shape: tuple[int, ...], parity: str) -> str:
    """Return the card of an exported model.

    Raises ValueError where the sweep's leaderboard or card is damaged.
    """
    from sat_ray.checkpoint import read_description
    from sat_ray.report.pages.model_card import model_card
    from sat_ray.sweep.execute.inputs import configuration_of

    card = recorded_card(found)
    about = read_description(Storage.at(found.checkpoint))
    name = found.checkpoint.rstrip("/").rpartition("/")[2]
    if (configuration := configuration_of(Storage.at(found.checkpoint))) is not None:
        name = configuration.name
    try:
        return model_card(
            name=name,
            file=file,
            kind=kind,
            spec=about["spec"],
            shape=shape,
            about=about["about"],
            sha256=about["sha256"],
            parity=parity,
            board=found.board,
            row=_row(found),
            card=card,
            config=None if found.config is None else to_json(found.config),
        )
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError):
        if found.sweep is None:
            raise
        raise ValueError(
            f"{found.sweep.full('leaderboard.json')} or the model's file in cards/ was changed or "
            f"is damaged; run again: {spelled('report')} RECIPE"
        ) from None


def locate(model: str, root: Storage) -> Found:
    """Find a checkpoint by the name of its sweep or by its folder, or raise ValueError."""
    from sat_ray.checkpoint import MODEL_JSON

    check_readable(model, field="model")
    if Storage.at(model).exists(MODEL_JSON):
        checkpoint = Storage.at(model).uri
        folder, inside, _ = checkpoint.rpartition("/checkpoints/")
        sweep = Storage(folder) if inside and Storage(folder).exists("config.json") else None
        board = _board(sweep)
        return Found(checkpoint, sweep, board, _config(sweep, board))
    if "/" in model:
        raise ValueError(
            f"model must be the folder of a checkpoint or the name of a sweep, got {model}, "
            f"which has no {MODEL_JSON}"
        )
    require_there(root)
    if not (names := sweeps_in(root)):
        raise ValueError(
            f"storage {root.uri} holds no sweep; give the one that sweep {model} was started with: "
            "--storage or SAT_RAY_STORAGE"
        )
    check_name(model, names, field="sweep")
    sweep = root.child(model)
    board = _board(sweep)
    if board is None:
        raise ValueError(
            f"sweep {model} has no leaderboard yet; run first: {spelled('sweep', [model])}, "
            "or name a checkpoint"
        )
    try:
        own = board["champion"]["row"]["checkpoint"].rpartition("/checkpoints/")[
            2
        ]  # the storage may have been moved since
        checkpoint = sweep.full(f"checkpoints/{own}")
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(
            f"{sweep.full('leaderboard.json')} names no champion; "
            f"run again: {spelled('report', [model])}, or name a checkpoint"
        ) from None
    return Found(checkpoint, sweep, board, _config(sweep, board))


def _board(sweep: Storage | None) -> dict[str, Any] | None:
    if sweep is None or not sweep.exists("leaderboard.json"):
        return None
    return _projected(sweep, "leaderboard.json", _Board)


def _projected(sweep: Storage, path: str, shape: Any) -> dict[str, Any]:
    """Read a file that the report wrote; ValueError where it was changed since."""
    again = f"run again: {spelled('report')} RECIPE"
    try:
        found = read_perhaps_sealed(sweep, path)
    except ValueError as error:
        raise ValueError(f"{sweep.full(path)} {error}; {again}") from None
    if fault := misfit(found, shape):
        raise ValueError(f"{sweep.full(path)}: {fault}; {again}")
    return found


def _config(sweep: Storage | None, board: dict[str, Any] | None) -> SweepConfig | None:
    """Return a sweep's config; ValueError where it is not the one of the leaderboard."""
    if sweep is None:
        return None
    config = stored_config(sweep)
    from sat_ray.report.sweep_report import CONFIG_HASH, config_hash

    if board is not None and board.get(CONFIG_HASH, config_hash(config)) != config_hash(config):
        raise ValueError(
            f"{sweep.full('config.json')} was changed after the report was written; restore the "
            f"file, or start the sweep again: {spelled('sweep')} RECIPE"
        )
    return config


def image_shape(found: Found) -> tuple[int, ...]:
    """Return (C, H, W) of the sweep's images; ValueError where they are not prepared."""
    if found.sweep is not None and found.config is not None:
        root = Storage(found.sweep.uri.rpartition("/")[0])
        dataset = Dataset.open(dataset_uri(found.config, root))
        if dataset is not None:
            return tuple(dataset.manifest["shape"])
    raise ValueError(
        f"the images of {found.checkpoint} are not beside it; give --image-shape C H W"
    )


def _row(found: Found) -> dict[str, Any] | None:
    tail = found.checkpoint.rstrip("/").rpartition("/")[2]
    rows = found.board["rows"] if found.board is not None else []
    return next((row for row in rows if row["checkpoint"].rpartition("/")[2] == tail), None)


def recorded_card(found: Found) -> dict[str, Any] | None:
    """Return the robustness card of a checkpoint; None where none was made.

    ValueError where its file was changed.
    """
    row = _row(found)
    if row is None or found.sweep is None:
        return None
    path = f"cards/{row['outcomes'].rpartition('/')[2].removesuffix('.parquet')}.json"
    if not found.sweep.exists(path):
        return None
    return _projected(found.sweep, path, Card)


def recorded_digest(found: Found) -> str | None:
    """Return the sha256 of a checkpoint's weights by its training's record; None without one."""
    if found.sweep is None:
        return None
    tail = found.checkpoint.rstrip("/").rpartition("/")[2]
    records = Records(found.sweep)
    made = (record.payload for stage in (TRAIN, SEARCH) for record in records.each(stage))
    return next((one["sha256"] for one in made if one["path"].rpartition("/")[2] == tail), None)


def main(*, about: str | None) -> int:
    """Run the command and return the exit status."""
    return exit_status(lambda: export(parse_options(sys.argv[1:], Asked(), about=about or "")))
