"""Measure robust accuracy: PGD over (model, shard of test images) as Ray tasks. Of a model of your own: --model URI --help.

Without --model it runs this stage of a sweep alone; what it needs must have been run before with the same recipe and options.
"""

import sys


def names_a_model(arguments: list[str]) -> bool:
    """Say whether the command evaluates a given model; --model.width and the like are overrides of a recipe."""
    return any(word == "--model" or word.startswith("--model=") for word in arguments)


def asks_for_help(arguments: list[str]) -> bool:
    """Return whether the command asks how a model is evaluated; after a recipe --help is the stage's."""
    wanted = any(word in ("--help", "-h") for word in arguments)
    return wanted and (names_a_model(arguments) or arguments[0].startswith("-"))


def main() -> int:
    """Run the command and return the exit status."""
    if names_a_model(sys.argv[1:]):
        from sat_ray.integrations.command_line.external import run as external

        return external.main()
    from sat_ray.integrations.command_line import driver

    return driver.main(driver.only("evaluate"), about=__doc__)
