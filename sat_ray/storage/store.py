"""One folder, local or on S3: whole-object reads and writes, and a commit that one writer wins.

A local write goes to a temporary name and is renamed. A local commit links the temporary file to
its final name, which fails if that exists. File and folder are flushed to the disk before either
returns. On S3 a write is one PUT, and a commit is a PUT with If-None-Match, which the server
refuses if the object exists. All of them may be repeated, and are repeated while an S3 server is
away (`sat_ray.storage.outages`).
"""

import contextlib
import io
import os
import re
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlparse

import pyarrow.fs as pafs

from sat_ray.storage import local_disk
from sat_ray.storage.outages import http_status, patient
from sat_ray.storage.uris import SCHEME, check_address, leaves
from sat_ray.utils.serialization import json_bytes, parse_json

BLOCK_BYTES = 8 * 1024**2  # of a file that is read from end to end: few requests, little memory
LOOKS = 5  # at a folder that another process makes at the same moment
EXISTS = 412  # S3's answer to a conditional PUT of an object that exists


@dataclass(frozen=True)
class Storage:
    """A folder named by an absolute local path or an s3:// URI.

    Every `path` below is relative to it, with forward slashes.
    """

    uri: str

    @classmethod
    def at(cls, uri: str | Path) -> "Storage":
        """Open a folder; a relative path is taken from the current directory.

        Raises ValueError on another scheme.
        """
        text = str(uri)
        # pyarrow would accept keys in a URI, and every record names its storage.
        check_address(text, field="storage")
        scheme = urlparse(text).scheme
        if re.match(rf"{SCHEME}[^/]", text):
            return cls(text.rstrip("/"))
        if scheme not in ("", "file"):
            raise ValueError(f"storage must be a local folder or s3://bucket/prefix, got {text!r}")
        return cls(str(Path(text.removeprefix("file://")).expanduser().resolve()))

    @classmethod
    def of_file(cls, uri: str) -> tuple["Storage", str]:
        """Open the folder of a file; return it and the file's name: "" for a root or a bucket.

        Raises ValueError on another scheme.
        """
        here = cls.at(uri)
        folder, _, name = here.uri.rpartition("/")
        return (here, "") if folder == "s3:/" else (cls(folder or "/"), name)

    @property
    def is_local(self) -> bool:
        """Say whether this is a folder of this machine."""
        return not self.uri.startswith(SCHEME)

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
        if leaves(path):
            raise ValueError(
                f"path {path!r} leaves the storage folder; it must be a relative name without '..'"
            )
        return f"{self.uri}/{path}"

    def _inner(self, path: str) -> str:
        self.full(path)
        return f"{self._opened[1]}/{path}" if path else self._opened[1]

    def located(self, path: str) -> str:
        """Return the absolute path or URI of what a record names.

        A record names a path in this folder, or one that is absolute already.
        """
        return path if path.startswith(("/", SCHEME)) else self.full(path)

    def exists(self, path: str) -> bool:
        """Say whether a file or folder is there."""
        return bool(self._kind(path) != pafs.FileType.NotFound)

    def is_file(self, path: str) -> bool:
        """Say whether a file is there."""
        return bool(self._kind(path) == pafs.FileType.File)

    @patient
    def _kind(self, path: str) -> pafs.FileType:
        return self._opened[0].get_file_info(self._inner(path)).type

    def names(self, folder: str) -> list[str]:
        """List the file names directly in a folder, sorted; [] where there is none."""
        found = (info.base_name for info in self._files(folder))
        return sorted(name for name in found if not name.startswith(local_disk.TEMPORARY))

    def folders(self, folder: str = "") -> list[str]:
        """List the names of the folders directly in a folder, sorted; [] where there is none."""
        found = self._entries(folder)
        return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of every file directly in a folder, by name; {} where there is none."""
        return {info.base_name: info.size for info in self._files(folder)}

    def stamps(self, folder: str) -> dict[str, str]:
        """Return size and time of the last change of every file directly in a folder, by name."""
        return {info.base_name: f"{info.size}:{info.mtime_ns}" for info in self._files(folder)}

    def _files(self, folder: str) -> list[pafs.FileInfo]:
        return [info for info in self._entries(folder) if info.type == pafs.FileType.File]

    @patient
    def _entries(self, folder: str) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(self._inner(folder), allow_not_found=True)
        for _ in range(LOOKS - 1):
            # pyarrow raises where the folder is made between its look and its own check for it
            with contextlib.suppress(FileNotFoundError):
                return self._look(selector)
        return self._look(selector)

    def _look(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        found: list[pafs.FileInfo] = self._opened[0].get_file_info(selector)
        return found

    @patient
    def read(self, path: str, *, offset: int = 0, length: int = -1) -> bytes:
        """Return a file's bytes, or `length` of them from `offset`.

        Raises FileNotFoundError where there is none, and NotAFileError for a pipe, a device or a
        folder.
        """
        if self.is_local:
            with self._open_local(path) as stream:
                stream.seek(offset)
                return stream.read(length)
        if not offset and length < 0:
            with self._opened[0].open_input_stream(self._inner(path), compression=None) as source:
                return bytes(source.read())
        with self._opened[0].open_input_file(self._inner(path)) as file:
            file.seek(offset)
            return bytes(file.read(None if length < 0 else length))

    @patient
    def open(self, path: str) -> BinaryIO:
        """Open a file to read it at any place, in blocks of BLOCK_BYTES.

        Raises as `read` does.
        """
        if self.is_local:
            return self._open_local(path, buffer=BLOCK_BYTES)
        return io.BufferedReader(self._opened[0].open_input_file(self._inner(path)), BLOCK_BYTES)

    def _open_local(self, path: str, *, buffer: int = io.DEFAULT_BUFFER_SIZE) -> BinaryIO:
        try:
            return local_disk.open_file(self._inner(path), buffer=buffer)
        except local_disk.NotAFileError:
            place = self.full(path)
            raise local_disk.NotAFileError(f"{place} is no regular file; give one") from None

    def read_json(self, path: str) -> Any:
        """Return a file's JSON value; ValueError, which names the file, where it is none."""
        try:
            return parse_json(self.read(path))
        except ValueError as error:
            raise ValueError(f"{self.full(path)} {error}") from None

    def read_object(self, path: str) -> dict[str, Any]:
        """Return a file's JSON object; ValueError, which names the file, where it is none."""
        value = self.read_json(path)
        if not isinstance(value, dict):
            found = type(value).__name__
            raise ValueError(f"{self.full(path)} must hold a JSON object, got a {found}")
        return value

    def write(self, path: str, data: bytes) -> None:
        """Put a whole file in place; readers see the old or the new one."""
        self.write_file(path, io.BytesIO(data))

    def write_json(self, path: str, value: Any) -> None:
        """Put a JSON file in place."""
        self.write(path, json_bytes(value))

    @patient
    def write_file(self, path: str, source: BinaryIO) -> None:
        """Put the whole of an open file in place as `write` does, without holding it in memory."""
        source.seek(0)
        if self.is_local:
            final = self._inner(path)
            with local_disk.temporary_file(final, source) as temporary:
                os.replace(temporary, final)
            return
        with self._opened[0].open_output_stream(self._inner(path), compression=None) as stream:
            shutil.copyfileobj(source, stream, BLOCK_BYTES)

    @patient
    def commit(self, path: str, data: bytes) -> bool:
        """Put a file in place unless it exists; say whether this call won. Never replaces one."""
        if not self.is_local:
            return self._put_if_absent(path, data)
        final = self._inner(path)
        with local_disk.temporary_file(final, io.BytesIO(data)) as temporary:
            try:
                os.link(temporary, final)
            except FileExistsError:
                return False
        return True

    def _put_if_absent(self, path: str, data: bytes) -> bool:
        import boto3  # only here: pyarrow cannot make a conditional request
        from botocore.exceptions import ClientError

        bucket, _, key = self._inner(path).partition("/")
        try:
            boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            if http_status(error) == EXISTS:
                return False
            raise
        return True

    def move(self, path: str, target: str) -> None:
        """Rename a file inside the folder."""
        places = (self._inner(path), self._inner(target))
        if self.is_local:
            os.makedirs(os.path.dirname(places[1]), exist_ok=True)
        self._opened[0].move(*places)
        if self.is_local:
            for moved in places:
                local_disk.flush(os.path.dirname(moved))

    @patient
    def discard(self, path: str) -> None:
        """Remove a file that nothing refers to any more; it may be gone already."""
        with contextlib.suppress(FileNotFoundError):
            self._opened[0].delete_file(self._inner(path))

    def discard_folder(self, path: str) -> None:
        """Remove a folder and the files directly in it; it may be gone already."""
        for name in self.names(path):
            self.discard(f"{path}/{name}" if path else name)
        if self.is_local:
            with contextlib.suppress(OSError):  # gone, or not empty
                os.rmdir(self._inner(path))

    def remove_abandoned(self) -> list[str]:
        """Remove the temporary files that killed writers left in a local folder; [] on S3.

        Returns their paths.
        """
        return local_disk.remove_abandoned(self.uri) if self.is_local else []
