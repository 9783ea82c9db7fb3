"""The evaluate stage of a sweep, or with --model the evaluation of a model made elsewhere."""

import sys


def names_a_model(arguments: list[str]) -> bool:
    """Return whether a given model is evaluated; --model.width is an override of a recipe."""
    return any(word == "--model" or word.startswith("--model=") for word in arguments)


def asks_for_help(arguments: list[str]) -> bool:
    """Return whether the help on given models is wanted; after a recipe it is the stage's."""
    wanted = any(word in ("--help", "-h") for word in arguments)
    return wanted and (names_a_model(arguments) or arguments[0].startswith("-"))


def main(*, about: str | None) -> int:
    """Run the command and return the exit status."""
    arguments = sys.argv[1:]
    if asks_for_help(arguments) or names_a_model(arguments):
        from sat_ray.integrations.command_line.external import command

        return command.main(["--help"] if asks_for_help(arguments) else arguments)
    from sat_ray.integrations.command_line import run

    return run.main(run.only("evaluate"), about=about)
