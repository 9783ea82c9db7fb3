"""`evaluate --model`: its options, and what it runs."""

from collections.abc import Sequence

from sat_ray.integrations.command_line.external.options import ExternalOptions
from sat_ray.integrations.command_line.parsing import parse_options
from sat_ray.integrations.command_line.process.exit_status import exit_status
from sat_ray.integrations.command_line.process.invocation import spelled

ABOUT = (
    "Attack a model: exact robust accuracy with its interval, sharded over Ray, resumed where it "
    "stopped. Needs --model and --data. Without --model this command runs the evaluate stage of a "
    "sweep: {command} RECIPE, whose options {command} RECIPE --help shows."
)


def main(words: Sequence[str]) -> int:
    """Evaluate as the words of a command line say and return the exit status."""

    def act() -> None:
        about = ABOUT.format(command=spelled("evaluate"))
        given = parse_options(words, ExternalOptions(), about=about)
        given.check_complete()
        from sat_ray.integrations.command_line.external.run import evaluate_external

        evaluate_external(given)

    return exit_status(act)
