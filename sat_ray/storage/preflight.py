"""Try everything that a sweep does to an S3 bucket, before anything is started; what fails is one line that says the fix."""

import contextlib
import os
import re
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

ACTIONS = {
    "list": "s3:ListBucket",
    "write": "s3:PutObject",
    "read": "s3:GetObject",
    "delete": "s3:DeleteObject",
}
PAIRED = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
ELSEWHERE = (
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
)
NAME_FIX = "correct the bucket's name in --storage or SAT_RAY_STORAGE"
SECONDS = 10


def check_s3(uri: str) -> None:
    """List, write, write on condition, read and delete below s3://bucket/prefix, leaving nothing; ValueError says what to do."""
    bucket, prefix = urlsplit(uri).netloc, urlsplit(uri).path.strip("/")
    if not bucket:
        raise ValueError(f"storage {uri} names no bucket; allowed: s3://bucket/prefix")
    client = _client(uri)
    key = "/".join(part for part in (prefix, f".probe-{uuid.uuid4().hex}") if part)
    probe: dict[str, Any] = {"Bucket": bucket, "Key": key}

    def attempt(action: str, call: Callable[[], Any]) -> Any:
        return _attempt(uri, bucket, prefix, action, call)

    attempt("list", lambda: client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1))
    attempt("write", lambda: client.put_object(**probe, Body=b"sat_ray"))
    try:
        if _replaces(
            lambda: attempt(
                "write", lambda: client.put_object(**probe, Body=b"replaced", IfNoneMatch="*")
            )
        ):
            raise ValueError(
                f"storage {uri}: {_store()} ignores If-None-Match, so two attempts could both commit a result; use a store that honours it"
            )
        if attempt("read", lambda: client.get_object(**probe)["Body"].read()) != b"sat_ray":
            raise ValueError(
                f"storage {uri}: {_store()} gives back other bytes than were written; use a store that reads what it wrote"
            )
        attempt("delete", lambda: client.delete_object(**probe))
    except ValueError:
        with contextlib.suppress(Exception):  # what failed first is shown
            client.delete_object(**probe)
        raise


def _client(uri: str) -> Any:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    missing = [name for name in PAIRED if not os.environ.get(name)]
    if len(missing) == 1:
        raise ValueError(
            f"storage {uri}: {missing[0]} is not set, and its other half is; set both, or neither for a cloud identity"
        )
    try:
        session = boto3.session.Session()  # of its own: the shared one remembers credentials
        return session.client(
            "s3",
            config=Config(
                connect_timeout=SECONDS, read_timeout=SECONDS, retries={"total_max_attempts": 2}
            ),
        )
    except (
        BotoCoreError,
        ValueError,
    ) as error:  # a profile that does not exist, an endpoint that is no URL
        raise ValueError(
            f"storage {uri}: {_first_line(error)}; correct AWS_PROFILE, AWS_REGION or AWS_ENDPOINT_URL"
        ) from None


def _replaces(write: Callable[[], Any]) -> bool:
    """Say whether a write that must not replace did replace."""
    try:
        write()
    except FileExistsError:
        return False
    return True


def _attempt(uri: str, bucket: str, prefix: str, action: str, call: Callable[[], Any]) -> Any:
    """Make one request. FileExistsError where its condition failed, ValueError with the fix where anything else did."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return call()
    except ClientError as error:
        code, status = (
            error.response["Error"]["Code"],
            error.response["ResponseMetadata"]["HTTPStatusCode"],
        )
        if status in (409, 412):
            raise FileExistsError(code) from None
        raise ValueError(
            f"storage {uri} cannot {action} ({code}): {_fix(error, bucket, prefix, action)}"
        ) from None
    except BotoCoreError as error:
        raise ValueError(
            f"storage {uri} cannot {action} ({_first_line(error)}): {_fix_of_client(error)}"
        ) from None


def _fix(error: Any, bucket: str, prefix: str, action: str) -> str:
    """Name the fix of a store's refusal."""
    code, status = (
        error.response["Error"]["Code"],
        error.response["ResponseMetadata"]["HTTPStatusCode"],
    )
    region = error.response["ResponseMetadata"].get("HTTPHeaders", {}).get("x-amz-bucket-region")
    if code == "NoSuchBucket" or (status == 404 and action == "list"):
        return f"create bucket {bucket} at {_store()}, or correct its name in --storage or SAT_RAY_STORAGE"
    if code == "InvalidBucketName":
        return NAME_FIX
    if code in ("InvalidAccessKeyId", "UnrecognizedClientException"):
        return f"{_store()} does not know AWS_ACCESS_KEY_ID; correct it, or AWS_ENDPOINT_URL"
    if code in ("SignatureDoesNotMatch", "InvalidSignature"):
        return "AWS_SECRET_ACCESS_KEY does not belong to AWS_ACCESS_KEY_ID; correct it (a newline at its end counts)"
    if code in ("ExpiredToken", "InvalidToken", "TokenRefreshRequired"):
        return "AWS_SESSION_TOKEN is not valid any more; get new credentials"
    if code == "RequestTimeTooSkewed":
        return "this machine's clock is wrong; set it"
    if region or code in ELSEWHERE or status in (301, 307):
        return f"the bucket is in another region; set AWS_REGION{f'={region}' if region else ''}"
    if code == "NotImplemented":
        return f"{_store()} lacks what a sweep needs; use a store with conditional writes (If-None-Match)"
    if status in (401, 403):
        where = f"{bucket}" if action == "list" else f"{bucket}/{prefix + '/' if prefix else ''}*"
        return f"allow {ACTIONS[action]} on arn:aws:s3:::{where} to these credentials (cluster/aws/worker-policy.json)"
    if status >= 500:
        return f"{_store()} does not work now; try again"
    return f"see what {_store()} says about {code}"


def _fix_of_client(error: Exception) -> str:
    """Name the fix where no answer came, or none was asked for."""
    kind = type(error).__name__
    if kind in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a cloud identity"
    if kind == "ParamValidationError":
        return NAME_FIX
    if kind == "SSLError":
        return "set AWS_CA_BUNDLE to the certificate of the store, or correct AWS_ENDPOINT_URL"
    return f"{_store()} does not answer; start it, or correct AWS_ENDPOINT_URL and AWS_REGION"


def _store() -> str:
    return _without_login(
        os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS S3"
    )


def _first_line(error: Exception) -> str:
    return _without_login(str(error).splitlines()[0])


def _without_login(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//***@", text)
