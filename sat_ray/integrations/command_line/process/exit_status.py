"""The status that a command ends with: 0, 2 for what a user can mend, 130 for a signal.

With 2 and 130 comes one line on standard error. It is 141, without a line, where nobody reads the
output any more, as of a command that `head` cuts off.
"""

import contextlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import sat_ray
from sat_ray.integrations.command_line.process.stop_signals import KEPT, STATUS, stop_signals
from sat_ray.storage.local_disk import in_words
from sat_ray.utils.errors import ReportedError
from sat_ray.utils.names import printable

UNREAD = 128 + signal.SIGPIPE
EXPECTED = (ValueError, OSError, ArithmeticError, ReportedError)


def settle_path() -> None:
    """Take the folder of the commands off sys.path, and put a clone on PYTHONPATH.

    Python puts the folder of a script on sys.path, and `train:net` would name the command train.py,
    not the user's module. The processes of a private Ray find a clone that is not installed
    through PYTHONPATH.
    """
    home = Path(sat_ray.__file__).resolve().parent.parent
    commands = home / "pipelines"
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != commands]
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if commands.is_dir() and str(home) in sys.path and str(home) not in known:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*known, str(home)]))


@contextlib.contextmanager
def written_output() -> Iterator[None]:
    """Write out what a block prints; to nowhere where the command was started without an output.

    Raises SystemExit(UNREAD) where the reader has gone, OSError where the output takes no more.
    """
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    try:
        try:
            yield
        finally:
            _flush()
    except BrokenPipeError:
        if not _is_unread():
            raise
        _drop_output()
        raise SystemExit(UNREAD) from None


def _flush() -> None:
    """Write out what is printed; OSError where the output takes no more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError:
        _drop_output()
        raise


def _is_unread() -> bool:
    """Return whether standard output is a pipe or a socket whose reader has gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _drop_output() -> None:
    """Send what standard output still holds to nowhere: Python tries it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_status(action: Callable[[], None]) -> int:
    """Run a command and return its exit status; other errors are raised.

    SAT_RAY_TRACEBACK=1 in the environment adds the traceback.
    """
    settle_path()
    with stop_signals() as stopped:
        try:
            with written_output():
                action()
            return 0
        except EXPECTED as error:
            if not stopped.is_set():
                if os.environ.get("SAT_RAY_TRACEBACK"):
                    traceback.print_exc()
                print(printable(f"error: {in_words(error)}", kept="\n"), file=sys.stderr)
                return 2
        except BaseException as error:
            if not stopped.is_set() and lost_by_ray(error):
                if os.environ.get("SAT_RAY_TRACEBACK"):
                    traceback.print_exc()
                print(
                    printable(f"error: Ray ended the work: {_ends(error)}; {KEPT}", kept="\n"),
                    file=sys.stderr,
                )
                return 2
            # an interrupted call into Ray may surface as another error; Ray's own handler, in place
            # during ray.init, exits with 15
            by_ray = isinstance(error, SystemExit) and error.code == signal.SIGTERM
            if not (stopped.is_set() or isinstance(error, KeyboardInterrupt) or by_ray):
                raise
    print(f"stopped; {KEPT}", file=sys.stderr, flush=True)  # after the line that names the signal
    return STATUS


def lost_by_ray(error: BaseException) -> bool:
    """Say whether Ray gave work up: a process, a node or its whole cluster died too often."""
    names = [f"{one.__module__}.{one.__name__}" for one in type(error).__mro__]
    # what code of a task raised is no loss: it is a mistake, and its traceback is wanted
    return names[0].startswith("ray.") and "ray.exceptions.RayTaskError" not in names


def _ends(error: BaseException) -> str:
    """Return the first and the last line of a long message: what ended, and why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ends = [type(error).__name__, *lines[:1], *lines[1:][-1:]]
    return ": ".join(one.rstrip(":. ") for one in ends)
