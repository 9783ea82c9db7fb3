"""Claim the folder of a sweep: it belongs to one config, and to results of one code."""

import itertools
from typing import Any

from sat_ray.integrations.command_line.checks.code_changes import settle_code_changes
from sat_ray.integrations.command_line.parsing import Command
from sat_ray.integrations.command_line.process.invocation import invocation
from sat_ray.report.console import Reporter
from sat_ray.storage.sealed import sealed
from sat_ray.storage.uris import pages_of
from sat_ray.sweep.config.stored import CONFIG, code_named, config_of, read_config
from sat_ray.sweep.context import Sweep
from sat_ray.sweep.tasks import STAGES
from sat_ray.utils.names import check_name
from sat_ray.utils.serialization import content_hash, to_json


def sweep_of(command: Command) -> Sweep:
    """Return what the stages are given for a command."""
    return Sweep(
        command.config,
        command.name,
        command.root,
        command.storage,
        (*invocation("sweep"), *command.argv),
        pages_of(command.tracking_uri),
    )


def claim_folder(command: Command) -> None:
    """Write a sweep's config into its folder; ValueError where that holds another config.

    Resources, price and budget are no part of what a sweep is: it holds those of the latest run.
    """
    try:
        theirs = read_config(command.storage)
    except FileNotFoundError:
        _write(command)
        return
    if not _is_of(command, theirs):
        raise ValueError(
            f"{command.storage.uri} holds a sweep with another config; "
            "choose another --name or --storage"
        )
    ours = sealed(to_json(command.config))
    if ours != command.storage.read_json(CONFIG) or not command.storage.exists("config.yaml"):
        _write(command)


def _write(command: Command) -> None:
    """Write the config for people, and last for programs: a folder that holds it is a sweep."""
    command.storage.write("config.yaml", command.config.as_yaml(name=command.name))
    command.storage.write_json(CONFIG, sealed(to_json(command.config)))


def _is_of(command: Command, stored: Any) -> bool:
    """Return whether a stored config is that of a command; code that it names is not imported."""
    if not set(code_named(stored)) <= set(code_named(to_json(command.config))):
        return False
    theirs = config_of(stored, source=command.storage.full(CONFIG))
    return content_hash(theirs.semantic()) == content_hash(command.config.semantic())


def check_code(command: Command, reporter: Reporter) -> None:
    """Refuse, reuse or move aside the records, and the begun trainings, of other code."""
    records = sweep_of(command).records
    named = {stage.name: stage for stage in STAGES}
    begun = (
        (named[check_name(record.stage, named, field=f"stage of begun {record.key}")], record)
        for record in records.begun()
    )
    committed = ((stage, record) for stage in STAGES for record in records.each(stage))
    settle_code_changes(
        records, itertools.chain(begun, committed), choice=command.on_code_change, reporter=reporter
    )
