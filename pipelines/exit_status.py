"""What a command ends with: 0 for success, 2 and one line for what a user can mend, 130 and one line for a signal."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sat_ray.attacks import InfeasiblePointError
from sat_ray.sentinel import CatastrophicOverfittingError

EXPECTED = (ValueError, OSError, ArithmeticError, InfeasiblePointError, CatastrophicOverfittingError)


def leave_own_folder_off_the_path() -> None:
    """Remove the folder of the commands from sys.path, where Python puts the folder of a script.

    Otherwise `train:net` would name the command train.py, not the user's module. Ray's workers look
    for modules where the driver does.
    """
    own = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != own]


def exit_status(action: Callable[[], None]) -> int:
    """Run a command and return its exit status. SAT_RAY_TRACEBACK=1 in the environment adds the traceback; other errors are raised."""
    leave_own_folder_off_the_path()
    stopped = threading.Event()

    def interrupt(signum: int, frame: Any) -> None:
        stopped.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        action()
        return 0
    except EXPECTED as error:
        if not stopped.is_set():
            if os.environ.get("SAT_RAY_TRACEBACK"):
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr)
            return 2
    except BaseException as error:
        # an interrupted call into Ray may surface as another error; Ray's own handler, in place during ray.init, exits with 15
        ended_by_signal = stopped.is_set() or isinstance(error, KeyboardInterrupt)
        if not ended_by_signal and not (isinstance(error, SystemExit) and error.code == signal.SIGTERM):
            raise
    print("stopped; what is committed is kept, the same command goes on from there", file=sys.stderr)
    return 130
