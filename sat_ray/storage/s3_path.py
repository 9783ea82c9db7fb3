"""Downloaded datasets on S3: the methods of pathlib.Path that their readers use."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sat_ray.storage.local_disk import NotAFileError, open_file
from sat_ray.storage.store import Storage
from sat_ray.storage.uris import SCHEME


@dataclass(frozen=True)
class RemotePath:
    """A file or folder on S3. key: its path in the bucket, "" for the whole bucket."""

    bucket: str
    key: str

    @classmethod
    def at(cls, uri: str) -> "RemotePath":
        """Read s3://bucket/prefix. Raises ValueError where it holds a login."""
        return cls._of(Storage.at(uri).uri)

    @classmethod
    def _of(cls, uri: str) -> "RemotePath":
        bucket, _, key = uri.removeprefix(SCHEME).partition("/")
        return cls(bucket, key)

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(self.bucket, f"{self.key}/{name}".lstrip("/"))

    @property
    def name(self) -> str:
        """Return its last part."""
        return str(self).rpartition("/")[2]

    @property
    def _storage(self) -> Storage:
        return _opened(self.bucket)

    def exists(self) -> bool:
        """Say whether it is there."""
        return self._storage.exists(self.key)

    def is_file(self) -> bool:
        """Say whether it is a file."""
        return self._storage.is_file(self.key)

    def is_dir(self) -> bool:
        """Say whether it is a folder, which on S3 is a prefix of some object's name."""
        return self.exists() and not self.is_file()

    def entries(self, *, folders: bool) -> list[str]:
        """Return the names of the folders directly below, or of the files, sorted."""
        return self._storage.folders(self.key) if folders else self._storage.names(self.key)

    def stamps(self) -> list[tuple[str, str]]:
        """Return (name, size and time of the last change) of the files directly below, sorted."""
        return sorted(self._storage.stamps(self.key).items())

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open a file to read it at any place."""
        assert mode == "rb", mode
        return self._storage.open(self.key)

    def read_bytes(self, offset: int = 0, length: int = -1) -> bytes:
        """Return a file's bytes, or `length` of them from `offset`."""
        return self._storage.read(self.key, offset=offset, length=length)

    def read_text(self) -> str:
        """Return a file's text."""
        return self.read_bytes().decode()


Folder = Path | RemotePath


def folder_at(path: str) -> Folder:
    """Return a folder of this machine, absolute or from here, or one on S3."""
    return RemotePath.at(path) if path.startswith(SCHEME) else Path(path).expanduser().resolve()


def read_range(path: str, offset: int, length: int, *, most: int) -> bytes:
    """Return `length` bytes of a file from `offset`, -1 for all that follow.

    path: absolute, or on S3. most: bytes that are read at most. Raises NotAFileError where there
    would be more, and for a pipe, a device or a folder; it does not wait for these.
    """
    if path.startswith(SCHEME):
        # Not `at`, because the name of a file may hold any character.
        return RemotePath._of(path).read_bytes(offset, length)
    with open_file(path) as stream:
        wanted = os.fstat(stream.fileno()).st_size - offset if length < 0 else length
        if wanted > most:
            raise NotAFileError(f"it has {wanted:,} bytes; at most {most:,} are read")
        stream.seek(offset)
        return stream.read(length)


def read_text(path: str, *, most: int) -> str:
    """Return the text of a small file, a local path or s3:// URI; raises what `read_range` does."""
    return read_range(str(folder_at(path)), 0, -1, most=most).decode()


@functools.cache
def _opened(bucket: str) -> Storage:
    """Return a bucket, with one connection for all its files."""
    return Storage(f"{SCHEME}{bucket}")
