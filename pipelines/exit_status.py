"""What a command ends with: 0 for success, 2 and one line for what a user can mend, 130 and one line for a signal."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from sat_ray.attacks import InfeasiblePointError
from sat_ray.names import printable
from sat_ray.sentinel import CatastrophicOverfittingError

EXPECTED = (ValueError, OSError, ArithmeticError, InfeasiblePointError, CatastrophicOverfittingError)


def exit_status(action: Callable[[], None]) -> int:
    """Run a command and return its exit status. SAT_RAY_TRACEBACK=1 in the environment adds the traceback; other errors are raised."""
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
            print(printable(f"error: {error}", kept="\n"), file=sys.stderr)
            return 2
    except BaseException as error:
        # an interrupted call into Ray may surface as another error; Ray's own handler, in place during ray.init, exits with 15
        ended_by_signal = stopped.is_set() or isinstance(error, KeyboardInterrupt)
        if not ended_by_signal and not (isinstance(error, SystemExit) and error.code == signal.SIGTERM):
            raise
    print("stopped; what is committed is kept, the same command goes on from there", file=sys.stderr)
    return 130
