"""Repeat requests while an S3 server is away."""

import functools
import logging
import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

OUTAGE_SECONDS = 300.0  # an S3 server may be away for this long before a request fails
FIRST_PAUSE = 0.5  # seconds between two attempts at first; each pause is twice the one before
LONGEST_PAUSE = 10.0
CONFLICT = 409  # S3 answers a conditional PUT so while another one is under way: try again
AWAY = (
    "NETWORK_CONNECTION",
    "SERVICE_UNAVAILABLE",
    "INTERNAL_FAILURE",
    "SLOW_DOWN",
    "THROTTLING",
    "REQUEST_TIMEOUT",
    "HTTP status 5",
)
"""pyarrow's words for the answers of S3 that may be different a moment later."""


class Place(Protocol):
    """What has a URI and is a local folder or not."""

    @property
    def uri(self) -> str:
        """Return the URI."""

    @property
    def is_local(self) -> bool:
        """Say whether it is a folder of this machine."""


Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")
Somewhere = TypeVar("Somewhere", bound=Place)


def patient(
    method: Callable[Concatenate[Somewhere, Arguments], Answer],
) -> Callable[Concatenate[Somewhere, Arguments], Answer]:
    """Repeat a method, which must allow it, while the S3 server is away; raise the last error."""

    @functools.wraps(method)
    def call(place: Somewhere, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        deadline = time.monotonic() + OUTAGE_SECONDS
        pause = FIRST_PAUSE
        while True:
            try:
                return method(place, *args, **kwargs)
            except Exception as error:
                late = time.monotonic() + pause > deadline
                if place.is_local or not is_away(error) or late:
                    raise
            if pause == FIRST_PAUSE:
                logging.getLogger(__name__).warning(
                    "%s does not answer; trying for %g s", place.uri, OUTAGE_SECONDS
                )
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    return call


def is_away(error: BaseException) -> bool:
    """Say whether a request to S3 failed for a reason that may pass.

    Such reasons are a lost connection and an error of the server itself.
    """
    if isinstance(error, OSError):
        return any(word in str(error) for word in AWAY)
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

    if isinstance(error, ClientError):
        status = http_status(error)
        return status >= 500 or status == CONFLICT
    return isinstance(error, (ConnectionError, HTTPClientError))


def http_status(error: Any) -> int:
    """Return the HTTP status of a botocore ClientError."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
