"""SIGTERM and SIGINT end a command, in whatever state its main thread is."""

import signal
import subprocess
import sys
import time

import pytest
from waiting import PATIENCE_SECONDS

from sat_ray.integrations.command_line.process.stop_signals import stop_signals

START = """
import ctypes, sys, threading, time
from sat_ray.integrations.command_line.process.stop_signals import stop_signals
with stop_signals(grace=float(sys.argv[1])):
"""
READY = 'print("ready", flush=True)'
IN_ORDER = f"""
    try:
        {READY}
        time.sleep(600)
    finally:
        print("tidied up", flush=True)
"""
SWALLOWS = f"""
    while True:
        try:
            {READY}
            time.sleep(600)
        except BaseException:
            pass
"""
LOCKED = """
    mutex = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
    # by then the main thread waits
    threading.Timer(0.3, lambda: print("ready", flush=True)).start()
    ctypes.CDLL(None).pthread_mutex_lock(mutex)  # never returns, signal or not
"""
SLOW_TO_END = f"""
    try:
        {READY}
        time.sleep(600)
    finally:
        time.sleep(600)
"""


def hear_interrupts() -> None:
    """Undo what a shell does to jobs in its background, such as half of `make test`:
    they ignore SIGINT.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(code: str, *signals: signal.Signals, grace: float) -> tuple[int, str, str, float]:
    """Send signals to a command, each after its answer to the one before; return its status, both
    outputs and the seconds.
    """
    command = [sys.executable, "-c", code, str(grace)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert process.stderr is not None
    answers, began = "", time.monotonic()
    for number in signals[:-1]:
        process.send_signal(number)
        answers += process.stderr.readline()
    process.send_signal(signals[-1])
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, out, answers + err, time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
def test_the_first_signal_ends_a_command_in_order_and_says_so_at_once(
    number: signal.Signals,
) -> None:
    status, out, err, _ = run(START + IN_ORDER, number, grace=600.0)
    assert status != 0 and out == "tidied up\n"
    assert err.startswith(
        f"{number.name}: stopping; this may take 600 s, a second signal ends it at once\n"
    )


@pytest.mark.parametrize(
    "body", [SWALLOWS, LOCKED, SLOW_TO_END], ids=["swallowed", "locked", "slow"]
)
def test_a_main_thread_that_does_not_end_is_ended(body: str) -> None:
    status, _, err, seconds = run(START + body, signal.SIGTERM, grace=0.5)
    assert status == 130 and 0.4 < seconds < 300
    assert err.splitlines()[1].startswith(
        "ended without waiting (not done after 0.5 s); what is committed is kept"
    )


@pytest.mark.parametrize(
    "body", [SWALLOWS, LOCKED, SLOW_TO_END], ids=["swallowed", "locked", "slow"]
)
def test_a_second_signal_ends_it_at_once(body: str) -> None:
    status, _, err, seconds = run(START + body, signal.SIGINT, signal.SIGTERM, grace=600.0)
    assert status == 130 and seconds < 300
    assert err.splitlines()[1].startswith("ended without waiting (SIGTERM came again)")


BUSY = """
import time
from sat_ray.integrations.command_line.process import stop_signals
from sat_ray.integrations.command_line.process.exit_status import exit_status
say = stop_signals._say
stop_signals._say = lambda text: (time.sleep(0.3), say(text))  # as on a busy machine

def work():
    print("ready", flush=True)
    time.sleep(600)

raise SystemExit(exit_status(work))
"""


def test_the_line_that_names_the_signal_comes_before_the_one_that_ends_the_command() -> None:
    status, _, err, _ = run(BUSY, signal.SIGTERM, grace=600.0)
    assert status == 130
    first, last = err.splitlines()
    assert first.startswith("SIGTERM: stopping") and last.startswith("stopped; ")


def test_a_command_that_succeeds_leaves_the_handlers_as_they_were() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stop_signals():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
