"""Run the whole pipeline or one of its stages as a command: parse, check, and run."""

import sys
from collections.abc import Callable

from sat_ray.integrations.command_line.parsing import Command, parse
from sat_ray.integrations.command_line.process.exit_status import exit_status
from sat_ray.storage.preflight import check_readable
from sat_ray.sweep.recipes import DEFAULT, RECIPES
from sat_ray.utils.names import printable

Run = Callable[[Command], None]


def main(run: Run, *, about: str | None) -> int:
    """Parse the command line, run, and return the exit status: 0 only if every stage succeeded.

    What computes or connects is imported after the command was read: --help and a mistake in the
    command are answered without torch, ray and mlflow.
    """

    def act() -> None:
        command = parse(sys.argv[1:], RECIPES, default=DEFAULT, about=about or "")
        command.config.resources.require_accelerator()
        _check_parts(command)
        if command.dry_run:
            from sat_ray.integrations.command_line.dry_run import describe

            print(printable(describe(command), kept="\n"))
        else:
            _check_machine(command)
            run(command)

    return exit_status(act)


def only(name: str) -> Run:
    """Return a run of one stage whose inputs must all be committed."""

    def run(command: Command) -> None:
        from sat_ray.integrations import stages
        from sat_ray.integrations.command_line.checks.claims import sweep_of
        from sat_ray.integrations.command_line.driver import Driver
        from sat_ray.integrations.ray.session import require_token

        require_token()  # before anything imports ray
        check_readable(command.root.uri)
        inputs = stages.committed_inputs(sweep_of(command), name)
        with Driver(command, alone=name) as driver:
            driver.returned |= inputs
            if name == "report":
                driver.register(driver.report(*inputs.values()))
            else:
                driver.wait(driver.stage(getattr(stages, name), *inputs.values()))

    return run


def _check_parts(command: Command) -> None:
    """Check the user's own dataset, the network and its weights; warn of what is not exported."""
    from sat_ray.models.architectures.timm_names import is_timm
    from sat_ray.sweep.config.stored import code_named
    from sat_ray.utils.serialization import to_json

    model = command.config.model
    if not (code_named(to_json(command.config)) or is_timm(model.name) or model.initial_weights):
        return
    check_readable(command.root.uri)
    check_readable(model.initial_weights, field="model.initial-weights")
    from sat_ray.integrations.command_line.checks.preflight import (
        check_user_defined_parts,
        export_warnings,
    )

    taken = check_user_defined_parts(command.config, command.root, download=not command.dry_run)
    if taken:
        print(printable(taken))
    for sentence in export_warnings(command.config, command.root):
        print(printable(f"warning: {sentence}"), file=sys.stderr)


def _check_machine(command: Command) -> None:
    from sat_ray.integrations.command_line.checks.preflight import check_machine

    check_machine(
        gradient=command.config.evaluation.gradient,
        field="evaluation.gradient",
        accelerator=command.config.resources.accelerator,
        compiles_training=command.config.training.compile,
    )
