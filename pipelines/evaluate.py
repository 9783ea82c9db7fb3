#!/usr/bin/env python3
"""Measure robust accuracy: PGD over (model, shard of test images) as Ray tasks. Of a model of your own: --model URI --help.

Without --model it runs this stage of a sweep alone; what it needs must have been run before with the same recipe and options.
"""

import sys


def names_a_model(arguments: list[str]) -> bool:
    """Say whether the command evaluates a given model; --model.width and the like are overrides of a recipe."""
    return any(word == "--model" or word.startswith("--model=") for word in arguments)


if __name__ == "__main__":
    if names_a_model(sys.argv[1:]):
        from pipelines import foreign

        sys.exit(foreign.main())
    from pipelines.driver import main, only

    sys.exit(main(only("evaluate"), about=__doc__))
