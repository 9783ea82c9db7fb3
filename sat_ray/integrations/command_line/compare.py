"""Compare models evaluated on the same images: paired differences, classes, and flipped images."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, NoReturn

from sat_ray.evaluation.outcome_files import evaluation_of, read_outcomes
from sat_ray.integrations.command_line.option_values import UsageError, check_dashes
from sat_ray.integrations.command_line.process.exit_status import exit_status
from sat_ray.integrations.command_line.process.invocation import program
from sat_ray.report.compare.verdicts import JudgedModel, judge
from sat_ray.storage.preflight import check_readable
from sat_ray.storage.store import Storage

PLAIN_WIDTH = 140  # where the output is no terminal


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (all options: --help)")

    def print_help(self, file: Any = None) -> None:
        """Print the help; argparse itself ignores that it cannot be written."""
        print(self.format_help(), end="", file=file)


def _parser(about: str | None) -> _Parser:
    """Return the parser; unlike that of the other commands it takes OUTCOMES after options too."""
    parser = _Parser(
        prog=program(),
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s OUTCOMES OUTCOMES [OUTCOMES ...] [options]",
    )
    parser.add_argument(
        "outcomes",
        nargs="+",
        metavar="OUTCOMES",
        help="outcomes of one model; the first is the one compared with",
    )
    parser.add_argument(
        "--json",
        metavar="PATH",
        help="write everything, every flipped image included, here as well",
    )
    parser.add_argument(
        "--flips",
        type=int,
        default=10,
        metavar="N",
        help="images shown of each direction (default 10; 0 for none)",
    )
    parser.add_argument(
        "--common",
        action="store_true",
        help="compare on the images that all outcomes have, by their ids",
    )
    parser.add_argument(
        "--any-gradient",
        action="store_true",
        help="attacks may differ in their gradients, as pgd-200 and pgd-200-bf16 do",
    )
    return parser


def parse(argv: Sequence[str], *, about: str | None) -> argparse.Namespace:
    """Read the command line; UsageError in one line."""
    check_dashes(argv, {"json": str})
    given = _parser(about).parse_args(argv)
    if len(given.outcomes) < 2:
        raise UsageError(f"OUTCOMES must be at least 2, got {len(given.outcomes)}")
    if "" in given.outcomes:
        raise UsageError(
            "OUTCOMES must be Parquet files or folders that hold some, got an empty word"
        )
    places = [Storage.at(one).uri for one in given.outcomes]
    repeated = [place for place in places if places.count(place) > 1]
    if repeated:
        raise UsageError(f"{repeated[0]} is given twice; give each of the OUTCOMES once")
    if given.flips < 0:
        raise UsageError(f"--flips must be an integer >= 0, got {given.flips}")
    if given.json is not None:
        _check_json(given.json, places)
    return given


def _check_json(path: str, outcomes: Sequence[str]) -> None:
    """Refuse what --json cannot write or must not write over, before anything is read."""
    if not path:
        raise UsageError("--json must be the path of a file, got an empty word")
    if Storage.at(path).uri in outcomes:
        raise UsageError(f"--json must be another file than the OUTCOMES, got {path}")
    folder, name = Storage.of_file(path)
    if not name or path.endswith("/") or (folder.exists(name) and not folder.is_file(name)):
        raise UsageError(f"--json must be the path of a file, got the folder {path}")


def read_model(uri: str, *, name: str) -> JudgedModel:
    """Read one model's outcomes and judge every image; ValueError names the place."""
    table = read_outcomes(uri)
    try:
        return judge(table, name=name, evaluation=evaluation_of(table))
    except ValueError as error:
        raise ValueError(f"{uri}: {error}") from None


def run(argv: Sequence[str], *, about: str | None = None) -> None:
    """Compare, print, and write the JSON file where one was asked for."""
    from rich.console import Console

    from sat_ray.report.compare.paired import compare, to_json
    from sat_ray.report.compare.tables import notes, render

    given = parse(argv, about=about)
    check_readable(*given.outcomes, field="outcomes")
    stems = [PurePosixPath(uri.rstrip("/")).stem for uri in given.outcomes]
    names = stems if len(set(stems)) == len(stems) else given.outcomes
    models = [read_model(uri, name=name) for uri, name in zip(given.outcomes, names, strict=True)]
    seen = [len(model.images.image_ids) for model in models]
    comparison = compare(models, common=given.common, any_gradient=given.any_gradient)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    if given.common:
        console.print(
            f"--common: {comparison.n:,} images are common to outcomes of "
            f"{', '.join(f'{n:,}' for n in seen)}",
            markup=False,
        )
    for part in render(comparison, flips=given.flips):
        console.print(part, soft_wrap=True)
    if given.json is not None:
        found: dict[str, Any] = {
            "outcomes": given.outcomes,
            "common": given.common,
            **to_json(comparison),
            "notes": notes(comparison),
        }
        folder, name = Storage.of_file(given.json)
        folder.write_json(name, found)


def main(*, about: str | None) -> int:
    """Run the command and return the exit status: 2, with one line, for what a user can mend."""
    return exit_status(lambda: run(sys.argv[1:], about=about))
