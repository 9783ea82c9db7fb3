"""The evaluate stage of a sweep, or with --model the evaluation of a model made elsewhere."""

import sys
from collections.abc import Sequence

ABOUT = (
    "Attack a model: exact robust accuracy with its interval, sharded over Ray, resumed where it "
    "stopped. Needs --model and --data. Without --model this command runs the evaluate stage of a "
    "sweep: {command} RECIPE, whose options {command} RECIPE --help shows."
)


# options of a given model alone; a sweep's are dotted
OF_A_MODEL = ("--model", "--data", "--attack", "--card", "--weights", "--protocol")


def names_a_model(arguments: Sequence[str]) -> bool:
    """Return whether a given model is evaluated; --model.width is an override of a recipe."""
    return any(word.partition("=")[0] in OF_A_MODEL for word in arguments)


def wants_help(arguments: Sequence[str]) -> bool:
    """Return whether the help on given models is wanted; after a recipe it is the stage's."""
    wanted = any(word in ("--help", "-h") for word in arguments)
    return wanted and (names_a_model(arguments) or arguments[0].startswith("-"))


def main(*, about: str | None) -> int:
    """Run the command and return the exit status."""
    arguments = sys.argv[1:]
    if wants_help(arguments):
        return evaluate_model(["--help"])
    if names_a_model(arguments):
        return evaluate_model(arguments)
    from sat_ray.integrations.command_line import run

    return run.main(run.only("evaluate"), about=about)


def evaluate_model(words: Sequence[str]) -> int:
    """Evaluate a given model as the words of a command line say; return the exit status."""
    from sat_ray.integrations.command_line.external.options import ExternalOptions
    from sat_ray.integrations.command_line.parsing import parse_options
    from sat_ray.integrations.command_line.process.exit_status import exit_status
    from sat_ray.integrations.command_line.process.invocation import spelled

    def act() -> None:
        about = ABOUT.format(command=spelled("evaluate"))
        given = parse_options(words, ExternalOptions(), about=about)
        given.check_complete()
        from sat_ray.integrations.command_line.external.run import evaluate_external

        evaluate_external(given)

    return exit_status(act)
