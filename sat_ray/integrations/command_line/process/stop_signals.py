"""SIGTERM and SIGINT: the first ends the command in order, the second at once, wherever it is.

Python runs a signal's handler in the main thread, between two steps of its own. A call into Ray or
an import can keep the main thread for minutes, or swallow the exception of the handler. The
kernel's signal also arrives in a pipe, and a thread of its own reads that.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT)
GRACE_SECONDS = 20.0  # between the first signal and the end of the process
STATUS = 130
KEPT = "what is committed is kept, the same command goes on from there"


@contextmanager
def stop_signals(grace: float = GRACE_SECONDS) -> Iterator[threading.Event]:
    """Raise KeyboardInterrupt in the main thread at the first signal; yield an event that it sets.

    grace: seconds after which the process ends with status 130, whatever the main thread does.
    """
    stopped = threading.Event()
    raised = threading.Event()
    said = threading.Event()

    def interrupt(signum: int, frame: Any) -> None:
        stopped.set()
        if not raised.is_set():
            raised.set()
            raise KeyboardInterrupt

    heard = [
        one for one in STOPPING if signal.getsignal(one) != signal.SIG_IGN
    ]  # nohup ignores some
    before = {signum: signal.signal(signum, interrupt) for signum in heard}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    earlier = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reading, stopped, said, grace), daemon=True)
    watcher.start()
    try:
        yield stopped
    finally:
        if stopped.is_set():  # the thread watches until the process has ended
            said.wait(grace)
        else:
            signal.set_wakeup_fd(earlier)
            os.close(writing)
            watcher.join()
            for signum, handler in before.items():
                signal.signal(signum, handler)


def _watch(reading: int, stopped: threading.Event, said: threading.Event, grace: float) -> None:
    """Read the signals that arrive until the pipe is closed; end the process at the second one."""
    ending = threading.Timer(grace, _end, args=(f"not done after {grace:g} s",))
    ending.daemon = True
    with os.fdopen(reading, "rb", buffering=0) as arriving:
        while numbers := arriving.read(64):
            for number in (one for one in numbers if one in STOPPING):
                name = signal.Signals(number).name
                if ending.is_alive():
                    _end(f"{name} came again")
                stopped.set()
                ending.start()
                _say(
                    f"{name}: stopping; this may take {grace:g} s, a second signal ends it at once"
                )
                said.set()


def _end(why: str) -> None:
    _say(f"ended without waiting ({why}); {KEPT}")
    os._exit(STATUS)


def _say(text: str) -> None:
    """Write to standard error past every lock: the main thread may hold one and never let go."""
    start = "\n" if sys.stderr.isatty() else ""  # a progress bar may stand in the line
    os.write(2, f"{start}{text}\n".encode())
