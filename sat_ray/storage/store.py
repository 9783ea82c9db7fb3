"""One folder, local or on S3: whole-object reads and writes, and a commit that exactly one writer wins.

A local write goes to a temporary name and is renamed; a commit links it to its final name, which fails if that exists. File and folder are
flushed to the disk before either returns. A writer holds a lock on its temporary file, so that what killed writers left can be told from
what is being written. On S3 a write is one PUT, and a commit is a PUT with If-None-Match, which the server refuses if the object exists.
All of them may be repeated, and while an S3 server is away they are, for up to OUTAGE_SECONDS.
"""

import contextlib
import errno
import fcntl
import functools
import io
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Concatenate, ParamSpec, TypeVar
from urllib.parse import urlparse

import pyarrow.fs as pafs

from sat_ray.storage.preflight import check_s3
from sat_ray.utils.serialization import json_bytes

OUTAGE_SECONDS = 300.0  # an S3 server may stay away so long before work is given up
BLOCK_BYTES = 8 * 1024**2  # of a file that is read from end to end: few requests, little memory
PAUSE_SECONDS = (0.5, 10.0)  # between two attempts: at first, at most
ABANDONED_SECONDS = (
    60.0  # a temporary file that is younger may have a writer that is about to lock it
)
TEMPORARY = ".tmp-"
AWAY = (
    "NETWORK_CONNECTION",
    "SERVICE_UNAVAILABLE",
    "INTERNAL_FAILURE",
    "SLOW_DOWN",
    "THROTTLING",
    "REQUEST_TIMEOUT",
    "HTTP status 5",
)
"""In pyarrow's words for what S3 answered: it may answer otherwise a moment later."""

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


def _patient(
    method: "Callable[Concatenate[Storage, Arguments], Answer]",
) -> "Callable[Concatenate[Storage, Arguments], Answer]":
    """Repeat a method that may be repeated while the S3 server is away; the last error is raised."""

    @functools.wraps(method)
    def call(storage: "Storage", /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        began, pause = time.monotonic(), PAUSE_SECONDS[0]
        while True:
            try:
                return method(storage, *args, **kwargs)
            except Exception as error:
                if (
                    storage.is_local
                    or not is_away(error)
                    or time.monotonic() + pause > began + OUTAGE_SECONDS
                ):
                    raise
            if pause == PAUSE_SECONDS[0]:
                logging.getLogger(__name__).warning(
                    "%s does not answer; trying for %g s", storage.uri, OUTAGE_SECONDS
                )
            time.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS[1])

    return call


def is_away(error: BaseException) -> bool:
    """Say whether a request to S3 failed for a reason that may pass: no connection, or an error of the server's own."""
    if isinstance(error, OSError):
        return any(word in str(error) for word in AWAY)
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

    if isinstance(error, ClientError):
        status = _status(error)
        return status >= 500 or status == CONFLICT
    return isinstance(error, (ConnectionError, HTTPClientError))


LASTING = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
)  # a disk that is full or read-only: doing the work again would end the same way
CONFLICT, EXISTS = (
    409,
    412,
)  # S3's answers to a conditional PUT: another request is under way, try again; the object is there


def _status(error: Any) -> int:
    """Return the HTTP status of an error of S3."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def check_address(text: str, *, field: str) -> None:
    """Raise ValueError, without showing the text, where an address holds a login or settings.

    Addresses are written into configs, records, reports and MLflow. A local path is none and may
    hold any character.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return
    authority, _, path = rest.partition("/")
    port = "" if scheme.lower() == "s3" else r"(:\d{1,5})?"
    plain = re.fullmatch(rf"[^:@%\[]*{port}", authority) is not None
    split = ":" in authority and "@" in path  # of a login whose password has a slash
    if not plain or split or "?" in rest or "#" in rest:
        raise ValueError(
            f"{field} must be an address without login and settings, such as s3://bucket/prefix "
            "(what was given is not shown); put keys and endpoint into the AWS_* variables"
        )


@dataclass(frozen=True)
class Storage:
    """A folder named by an absolute local path or an s3:// URI; every `path` below is relative to it, with forward slashes."""

    uri: str

    @classmethod
    def at(cls, uri: str | Path) -> "Storage":
        """Open a folder; a relative path is taken from the current directory. Raises ValueError on another scheme."""
        text = str(uri)
        check_address(
            text, field="storage"
        )  # pyarrow would take keys there, and every record names its storage
        scheme = urlparse(text).scheme
        if scheme == "s3":
            return cls(text.rstrip("/"))
        if scheme not in ("", "file"):
            raise ValueError(f"storage is {text!r}; allowed: a local folder or s3://bucket/prefix")
        return cls(str(Path(text.removeprefix("file://")).expanduser().resolve()))

    @property
    def is_local(self) -> bool:
        """Say whether this is a folder of this machine."""
        return not self.uri.startswith("s3://")

    @cached_property
    def _opened(self) -> tuple[pafs.FileSystem, str]:
        if self.is_local:
            return pafs.LocalFileSystem(), self.uri
        system, root = pafs.FileSystem.from_uri(self.uri)
        return system, root

    def child(self, path: str) -> "Storage":
        """Return the folder below this one."""
        return Storage(self.full(path))

    def full(self, path: str) -> str:
        """Return the absolute path or URI of `path`; ValueError where it would leave the folder."""
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(
                f"path {path!r} leaves the storage folder; allowed: relative names without '..'"
            )
        return f"{self.uri}/{path}"

    def _inner(self, path: str) -> str:
        self.full(path)
        return f"{self._opened[1]}/{path}" if path else self._opened[1]

    def located(self, path: str) -> str:
        """Return the absolute path or URI of what a record names: a path in this folder, or one that is absolute already."""
        return path if path.startswith(("/", "s3://")) else self.full(path)

    @_patient
    def exists(self, path: str) -> bool:
        """Say whether a file or folder is there."""
        kind = self._opened[0].get_file_info(self._inner(path)).type
        return bool(kind != pafs.FileType.NotFound)

    @_patient
    def names(self, folder: str) -> list[str]:
        """List the file names directly in a folder, sorted; [] where there is none."""
        selector = pafs.FileSelector(self._inner(folder), allow_not_found=True)
        found = self._opened[0].get_file_info(selector)
        return sorted(
            info.base_name
            for info in found
            if info.type == pafs.FileType.File and not info.base_name.startswith(TEMPORARY)
        )

    @_patient
    def folders(self, folder: str = "") -> list[str]:
        """List the names of the folders directly in a folder, sorted; [] where there is none."""
        found = self._opened[0].get_file_info(
            pafs.FileSelector(self._inner(folder), allow_not_found=True)
        )
        return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)

    @_patient
    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of every file directly in a folder, by name; {} where there is none."""
        found = self._opened[0].get_file_info(
            pafs.FileSelector(self._inner(folder), allow_not_found=True)
        )
        return {info.base_name: info.size for info in found if info.type == pafs.FileType.File}

    @_patient
    def stamps(self, folder: str) -> dict[str, str]:
        """Return size and time of the last change of every file directly in a folder, by name; {} where there is none."""
        found = self._opened[0].get_file_info(
            pafs.FileSelector(self._inner(folder), allow_not_found=True)
        )
        return {
            info.base_name: f"{info.size}:{info.mtime_ns}"
            for info in found
            if info.type == pafs.FileType.File
        }

    @_patient
    def is_file(self, path: str) -> bool:
        """Say whether a file is there."""
        return bool(self._opened[0].get_file_info(self._inner(path)).type == pafs.FileType.File)

    @_patient
    def read(self, path: str, *, offset: int = 0, length: int = -1) -> bytes:
        """Return a file's bytes, or `length` of them from `offset`; FileNotFoundError where there is none."""
        if not offset and length < 0:
            with self._opened[0].open_input_stream(self._inner(path), compression=None) as stream:
                return bytes(stream.read())
        with self._opened[0].open_input_file(self._inner(path)) as file:
            file.seek(offset)
            return bytes(file.read(None if length < 0 else length))

    @_patient
    def open(self, path: str) -> BinaryIO:
        """Open a file to read it at any place, in blocks of BLOCK_BYTES; FileNotFoundError where there is none."""
        return io.BufferedReader(self._opened[0].open_input_file(self._inner(path)), BLOCK_BYTES)

    def read_json(self, path: str) -> Any:
        """Return a file's JSON value; ValueError where it is none."""
        try:
            return json.loads(self.read(path))
        except RecursionError:
            raise ValueError("its values are nested too deeply") from None

    @_patient
    def write(self, path: str, data: bytes) -> None:
        """Put a whole file in place, replacing what was there; readers see the old or the new one."""
        if self.is_local:
            with self._temporary(path, io.BytesIO(data)) as temporary:
                os.replace(temporary, self._inner(path))
            return
        with self._opened[0].open_output_stream(self._inner(path), compression=None) as stream:
            stream.write(data)

    @_patient
    def write_file(self, path: str, source: BinaryIO) -> None:
        """Put the whole of an open file in place as `write` does, without holding it in memory."""
        source.seek(0)
        if self.is_local:
            with self._temporary(path, source) as temporary:
                os.replace(temporary, self._inner(path))
            return
        with self._opened[0].open_output_stream(self._inner(path), compression=None) as stream:
            shutil.copyfileobj(source, stream, BLOCK_BYTES)

    def write_json(self, path: str, value: Any) -> None:
        """Put a JSON file in place."""
        self.write(path, json_bytes(value))

    @_patient
    def commit(self, path: str, data: bytes) -> bool:
        """Put a file in place unless it exists; say whether this call won. Never replaces anything."""
        if self.is_local:
            with self._temporary(path, io.BytesIO(data)) as temporary:
                try:
                    os.link(temporary, self._inner(path))
                except FileExistsError:
                    return False
            return True
        return self._put_if_absent(path, data)

    def move(self, path: str, target: str) -> None:
        """Rename a file inside the folder."""
        if self.is_local:
            os.makedirs(os.path.dirname(self._inner(target)), exist_ok=True)
        self._opened[0].move(self._inner(path), self._inner(target))
        if self.is_local:
            for moved in (path, target):
                _flush_folder(os.path.dirname(self._inner(moved)))

    @_patient
    def discard(self, path: str) -> None:
        """Remove a file that nothing refers to any more; it may be gone already."""
        with contextlib.suppress(FileNotFoundError):
            self._opened[0].delete_file(self._inner(path))

    def discard_folder(self, path: str) -> None:
        """Remove a folder and the files directly in it; it may be gone already."""
        for name in self.names(path):
            self.discard(f"{path}/{name}")
        if self.is_local:
            with contextlib.suppress(OSError):  # gone, or not empty
                os.rmdir(self._inner(path))

    def remove_abandoned(self) -> list[str]:
        """Remove the temporary files that killed writers left anywhere in a local folder and return their paths; [] on S3.

        The lock of a writer that lives keeps its file; one that is younger than ABANDONED_SECONDS stays in any case.
        """
        if not self.is_local:
            return []
        found = Path(self.uri).rglob(f"{TEMPORARY}*")
        return [str(path) for path in found if _is_abandoned(path)]

    @contextlib.contextmanager
    def _temporary(self, path: str, source: BinaryIO) -> Iterator[str]:
        """Write a temporary file beside `path` for a block that puts it in place; then flush the folder, and leave no temporary."""
        final = self._inner(path)
        folder = os.path.dirname(final)
        _make_folders(folder)
        temporary = os.path.join(folder, f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            with open(temporary, "wb") as stream:
                with contextlib.suppress(
                    OSError
                ):  # a disk without locks: then nothing is ever removed from it
                    fcntl.flock(stream, fcntl.LOCK_EX)
                shutil.copyfileobj(source, stream)
                stream.flush()
                os.fsync(stream.fileno())
                yield temporary
        finally:
            with contextlib.suppress(FileNotFoundError):  # it was renamed
                os.unlink(temporary)
        _flush_folder(folder)

    def _put_if_absent(self, path: str, data: bytes) -> bool:
        import boto3  # only here: the one S3 request that pyarrow cannot make
        from botocore.exceptions import ClientError

        bucket, _, key = self._inner(path).partition("/")
        try:
            boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            if _status(error) == EXISTS:
                return False
            raise
        return True


def _make_folders(folder: str) -> None:
    """Make a folder and those above it, each flushed into the one that holds it."""
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for one in reversed(missing):
        os.makedirs(one, exist_ok=True)
        _flush_folder(os.path.dirname(one))


def _flush_folder(folder: str) -> None:
    """Bring a folder's names to the disk: a file that was linked or renamed may be lost with the power until then."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks flush no folders
            raise
    finally:
        os.close(handle)


def _is_abandoned(path: Path) -> bool:
    """Remove a temporary file whose writer is gone; say whether it was one."""
    with contextlib.suppress(OSError):  # it is gone, or its writer holds the lock: BlockingIOError
        if time.time() - path.stat().st_mtime < ABANDONED_SECONDS:
            return False
        with open(path, "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        return True
    return False


def is_lasting(error: BaseException) -> bool:
    """Say whether work that failed to write to its storage would fail again: the disk is full, or read-only."""
    return isinstance(error, OSError) and error.errno in LASTING


def _refusal(error: Exception) -> str:
    """Return what a probe failed of, in one line."""
    if (
        isinstance(error, OSError)
        and error.filename2 is not None
        and error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
    ):
        return (
            f"its disk makes no hard links, with which a result is committed once: {error.strerror}"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no room is left: {error.strerror}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def check_writable(storage: Storage) -> None:
    """Write, commit twice, read and remove a probe, as a sweep does; ValueError says what failed and what to do."""
    if not storage.is_local:
        check_s3(
            storage.uri
        )  # knows more of S3's answers than pyarrow tells, which is tried after it
    probe = f".probe-{uuid.uuid4().hex}"
    try:
        try:
            storage.write(probe, b"sat_ray")
            if storage.commit(probe, b"replaced"):
                raise OSError(
                    "a commit replaced what was there, so two attempts could both commit a result"
                )
            if storage.read(probe) != b"sat_ray":
                raise OSError("what was read is not what was written")
        finally:
            storage.discard(probe)
    except Exception as error:
        reason = _refusal(error)
        advice = (
            "choose a writable folder"
            if storage.is_local
            else "check the bucket, the credentials and AWS_ENDPOINT_URL"
        )
        raise ValueError(
            f"storage {storage.uri} cannot be written ({reason}); {advice} with --storage"
        ) from error
