"""The command `sat-ray`: `sat-ray NAME` runs pipelines/NAME.py, with the same options."""

import ast
import runpy
import sys
from pathlib import Path

import sat_ray
from sat_ray.integrations.command_line.process.exit_status import exit_status
from sat_ray.integrations.command_line.process.invocation import CONSOLE, note_console
from sat_ray.utils.names import suggest

COMMANDS = (
    "sweep",
    "prepare",
    "search",
    "train",
    "card",
    "evaluate",
    "report",
    "status",
    "compare",
    "export",
)


def main() -> int:
    """Run the script that the first word names; without one, list them."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        return exit_status(lambda: print(listing()))
    if words[0] == "--version":
        return exit_status(lambda: print(f"{CONSOLE} {sat_ray.__version__}"))
    if words[0] not in COMMANDS:
        print(f"error: {unknown(words[0])}", file=sys.stderr)
        return 2
    note_console()
    del sys.argv[1]  # runpy puts the script's path in the place of the first
    runpy.run_path(str(script(words[0])), run_name="__main__")
    return 0


def listing() -> str:
    """Return every command with one line about it."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about(name)}" for name in COMMANDS]
    head = f"usage: {CONSOLE} COMMAND [OPTIONS]; {CONSOLE} COMMAND --help shows the options"
    return "\n".join([head, "", *lines])


def about(name: str) -> str:
    """Return the first line of a script's docstring, without running the script."""
    text = ast.get_docstring(ast.parse(script(name).read_text())) or ""
    return text.partition("\n")[0]


def unknown(word: str) -> str:
    """Return what is wrong with a word that is no command, and the nearest one."""
    return f"unknown command {word!r}; {suggest(word, COMMANDS)} (all commands: {CONSOLE} --help)"


def script(name: str) -> Path:
    """Return the path of a script: in the package where it is installed, beside it in a clone."""
    package = Path(sat_ray.__file__).resolve().parent
    installed = package / "pipelines"
    folder = installed if installed.is_dir() else package.parent / "pipelines"
    return folder / f"{name}.py"
