"""Try what a command does to an S3 bucket; a failure is one line with the fix."""

import contextlib
import os
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sat_ray.storage.outages import http_status

ACTIONS = {
    "list": "s3:ListBucket",
    "write": "s3:PutObject",
    "read": "s3:GetObject",
    "delete": "s3:DeleteObject",
}
PAIRED = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
STORAGE = "storage"  # the field that --storage and SAT_RAY_STORAGE set
NAME_FIX = "correct the bucket's name in {field}"
SECONDS = 10
CONDITION_FAILED = (409, 412)
DENIED = "AccessDenied"
ELSEWHERE = (
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
)
FIXES = {
    ("InvalidBucketName",): NAME_FIX,
    (
        "InvalidAccessKeyId",
        "UnrecognizedClientException",
    ): "{store} does not know AWS_ACCESS_KEY_ID; correct it, or AWS_ENDPOINT_URL",
    (
        "SignatureDoesNotMatch",
        "InvalidSignature",
    ): "AWS_SECRET_ACCESS_KEY does not belong to AWS_ACCESS_KEY_ID; correct it "
    "(a newline at its end counts)",
    (
        "ExpiredToken",
        "InvalidToken",
        "TokenRefreshRequired",
    ): "AWS_SESSION_TOKEN is not valid any more; get new credentials",
    ("RequestTimeTooSkewed",): "this machine's clock is wrong; set it",
    (
        "NotImplemented",
    ): "{store} lacks what a sweep needs; use a store with conditional writes (If-None-Match)",
}
"""What to do about an error code of S3."""


class DeniedError(ValueError):
    """S3 knows the credentials, and they do not permit a request."""


def check_s3(uri: str, *, writes: bool = True, field: str = STORAGE) -> None:
    """List, write, write on condition, read and delete below s3://bucket/prefix.

    Leaves nothing behind. Raises ValueError with what to do. writes: False to list only, which may
    be denied, because some buckets give away single files; field: what names the place.
    """
    parts = urlsplit(uri)
    if not parts.netloc:
        raise ValueError(f"{field} must name a bucket, s3://bucket/prefix, got {uri}")
    client = _client(f"{field} {uri}")
    probe = _Probe(field, uri, parts.netloc, parts.path.strip("/"), client)
    if writes:
        probe.list()
        probe.write()
    else:
        with contextlib.suppress(DeniedError):
            probe.list()


def _client(place: str) -> Any:
    """Return a client. place: for the message, what it is asked about."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    missing = [name for name in PAIRED if not os.environ.get(name)]
    if len(missing) == 1:
        raise ValueError(
            f"{place}: {missing[0]} is not set, and its other half is; "
            "set both, or neither for a cloud identity"
        )
    limits = Config(
        connect_timeout=SECONDS, read_timeout=SECONDS, retries={"total_max_attempts": 2}
    )
    try:
        # A new session, because the shared one keeps credentials.
        return boto3.session.Session().client("s3", config=limits)
    except (BotoCoreError, ValueError) as error:  # no such profile, an endpoint that is no URL
        raise ValueError(
            f"{place}: {_first_line(error)}; correct AWS_PROFILE, AWS_REGION or AWS_ENDPOINT_URL"
        ) from None


@dataclass(frozen=True)
class _Probe:
    """The requests of a check below one prefix of a bucket."""

    field: str
    uri: str
    bucket: str
    prefix: str
    client: Any

    @property
    def named(self) -> str:
        """Return where the bucket is named."""
        return "--storage or SAT_RAY_STORAGE" if self.field == STORAGE else self.field

    def list(self) -> None:
        """List; raise ValueError where that fails."""
        listing = {"Bucket": self.bucket, "Prefix": self.prefix, "MaxKeys": 1}
        self._attempt("list", lambda: self.client.list_objects_v2(**listing))

    def write(self) -> None:
        """Make all requests but the listing; raise ValueError for the first that fails."""
        name = f".probe-{uuid.uuid4().hex}"
        probe = {"Bucket": self.bucket, "Key": f"{self.prefix}/{name}".lstrip("/")}
        client = self.client
        self._attempt("write", lambda: client.put_object(**probe, Body=b"sat_ray"))
        try:
            self._check_contents(probe)
            self._attempt("delete", lambda: client.delete_object(**probe))
        except ValueError:
            with contextlib.suppress(Exception):  # the first failure is shown
                client.delete_object(**probe)
            raise

    def _check_contents(self, probe: dict[str, str]) -> None:
        client = self.client
        with contextlib.suppress(FileExistsError):
            self._attempt(
                "write", lambda: client.put_object(**probe, Body=b"replaced", IfNoneMatch="*")
            )
            raise ValueError(
                f"{self.field} {self.uri}: {_store()} ignores If-None-Match, so two attempts could "
                "both commit a result; use a store that honours it"
            )
        found = self._attempt("read", lambda: client.get_object(**probe)["Body"].read())
        if found != b"sat_ray":
            raise ValueError(
                f"{self.field} {self.uri}: {_store()} gives back other bytes than were written; "
                "use a store that reads what it wrote"
            )

    def _attempt(self, action: str, call: Callable[[], Any]) -> Any:
        """Make one request.

        Raises FileExistsError where its condition failed, ValueError with the fix for any other
        failure.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return call()
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if http_status(error) in CONDITION_FAILED:
                raise FileExistsError(code) from None
            kind = DeniedError if code == DENIED else ValueError
            raise kind(
                f"{self.field} {self.uri} cannot {action} ({code}): {self._fix(error, action)}"
            ) from None
        except BotoCoreError as error:
            raise ValueError(
                f"{self.field} {self.uri} cannot {action} ({_first_line(error)}): "
                f"{_fix_of_client(error, self.named)}"
            ) from None

    def _fix(self, error: Any, action: str) -> str:
        """Return what to do about an error that the store returned."""
        code = error.response["Error"]["Code"]
        status = http_status(error)
        headers = error.response["ResponseMetadata"].get("HTTPHeaders", {})
        region = headers.get("x-amz-bucket-region")
        if code == "NoSuchBucket" or (status == 404 and action == "list"):
            return f"create bucket {self.bucket} at {_store()}, or correct its name in {self.named}"
        for codes, fix in FIXES.items():
            if code in codes:
                return fix.format(store=_store(), field=self.named)
        if region or code in ELSEWHERE or status in (301, 307):
            value = f"={region}" if region else ""
            return f"the bucket is in another region; set AWS_REGION{value}"
        if status in (401, 403):
            place = self.bucket if action == "list" else f"{self.bucket}/{self.prefix}/*"
            return (
                f"allow {ACTIONS[action]} on arn:aws:s3:::{place.replace('//', '/')} "
                "to these credentials (cluster/aws/worker-policy.json)"
            )
        if status >= 500:
            return f"{_store()} does not work now; try again"
        return f"read what {_store()} documents about {code}"


def _fix_of_client(error: Exception, field: str) -> str:
    """Return what to do where the store did not answer, or no request was sent.

    field: what names the place.
    """
    kind = type(error).__name__
    if kind in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
        return (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, "
            "or give the machine a cloud identity"
        )
    if kind == "ParamValidationError":
        return NAME_FIX.format(field=field)
    if kind == "SSLError":
        return "set AWS_CA_BUNDLE to the certificate of the store, or correct AWS_ENDPOINT_URL"
    return f"{_store()} does not answer; start it, or correct AWS_ENDPOINT_URL and AWS_REGION"


def _store() -> str:
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return _without_login(named or "AWS S3")


def _first_line(error: Exception) -> str:
    return _without_login(str(error).splitlines()[0])


def _without_login(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//***@", text)
