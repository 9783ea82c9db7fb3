"""Try what a command does to its storage, before anything is started."""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator

from sat_ray.storage.local_disk import NO_ROOM, missing_folders
from sat_ray.storage.s3_preflight import STORAGE, check_s3
from sat_ray.storage.store import Storage
from sat_ray.storage.uris import SCHEME

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


def check_readable(*places: str, field: str = STORAGE) -> None:
    """Raise ValueError, in one line, where a place on S3 does not answer or is not there.

    places: any words; what does not begin with s3:// is left alone. field: what names them, for the
    message. It takes seconds, where reading would wait for the end of an outage.
    """
    for place in places:
        if place.startswith(SCHEME):
            check_s3(Storage.at(place).uri, writes=False, field=field)


def check_writable(storage: Storage) -> None:
    """Write, commit twice, read and remove a probe, as a sweep does.

    Raises ValueError, in one line, with what failed and what to do.
    """
    if not storage.is_local:
        check_s3(storage.uri)  # first, because it explains more of S3's answers than pyarrow does
    try:
        _probe(storage)
    except Exception as error:
        advice = (
            "choose a writable folder"
            if storage.is_local
            else "check the bucket, the credentials, AWS_REGION and AWS_ENDPOINT_URL"
        )
        raise ValueError(
            f"storage {storage.uri} cannot be written ({_reason(error)}); {advice} with --storage"
        ) from error


@contextlib.contextmanager
def nothing_left(storage: Storage) -> Iterator[None]:
    """Remove the empty folders that a block made for a local storage, where the block fails."""
    missing = missing_folders(f"{storage.uri}/data") if storage.is_local else []
    try:
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):  # gone, or not empty
                os.rmdir(folder)
        raise


def _probe(storage: Storage) -> None:
    probe = f".probe-{uuid.uuid4().hex}"
    try:
        storage.write(probe, b"sat_ray")
        if storage.commit(probe, b"replaced"):
            raise OSError("a commit replaced a file, so two attempts could both commit a result")
        if storage.read(probe) != b"sat_ray":
            raise OSError("what was read is not what was written")
    finally:
        storage.discard(probe)


def _reason(error: Exception) -> str:
    """Return why a probe failed, in one line."""
    if isinstance(error, OSError):
        if error.filename2 is not None and error.errno in NO_LINKS:
            return f"its disk has no hard links, which commits need: {error.strerror}"
        if error.errno in NO_ROOM:
            return f"no room is left: {error.strerror}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
