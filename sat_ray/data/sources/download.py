"""Official files of a data set, fetched by torchvision's downloader and checked by its checksums.

Addresses and checksums are torchvision's own. A file that is there is never replaced: it may be
another data set's, whose files have the same names.
"""

import contextlib
import io
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from sat_ray.utils.import_string import first_line

TIMEOUT_SECONDS = 30.0  # without an answer; a slow connection may take as long as it needs


class DownloadError(ValueError):
    """A file of a data set could not be fetched, or another file has its name."""


@dataclass(frozen=True)
class OfficialFile:
    """A file to fetch: its name, the addresses to try in turn, and its checksum."""

    name: str
    urls: tuple[str, ...]
    md5: str


def cache_folder(dataset: str) -> Path:
    """Return where a data set is kept that was fetched without the name of a folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "sat_ray" / dataset


def official_files(kind: str) -> list[OfficialFile]:
    """Return the files of a data set. kind: name of torchvision's class for it."""
    from torchvision import datasets  # takes a second to import

    found = getattr(datasets, kind)
    if hasattr(found, "mirrors"):
        return [
            OfficialFile(name, tuple(f"{mirror}{name}" for mirror in found.mirrors), md5)
            for name, md5 in found.resources
        ]
    return [OfficialFile(found.filename, (found.url,), found.tgz_md5)]


def fetch(kind: str, folder: Path) -> None:
    """Download the official files that a folder lacks. Raises DownloadError in one line.

    kind: name of torchvision's class for the data set. A file appears in the folder complete and
    checked, or not at all.
    """
    from torchvision.datasets.utils import check_integrity

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in official_files(kind):
            target = folder / file.name
            if not target.exists():
                _fetch(file, folder)
            elif not check_integrity(target, file.md5):
                raise DownloadError(
                    f"data.download does not replace {target}, which is not the official file "
                    f"(its md5 is not {file.md5}); move it away, or name another folder"
                )
    except OSError as error:
        raise DownloadError(
            f"data.download cannot write to {folder} ({first_line(error)}); name a writable folder "
            "with --data.path"
        ) from None


def _fetch(file: OfficialFile, folder: Path) -> None:
    """Download one file from the first address that gives the right one."""
    from torchvision.datasets.utils import download_url

    failed = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
        for url in file.urls:
            try:
                with _impatient(), contextlib.redirect_stderr(io.StringIO()):  # its progress bar
                    download_url(url, temporary, filename=file.name, md5=file.md5)
            except (OSError, RuntimeError, HTTPException) as error:
                failed.append(f"{url} ({_reason(error)})")
                continue
            os.replace(Path(temporary) / file.name, folder / file.name)
            return
    raise DownloadError(
        f"data.download cannot fetch {file.name} from {' or '.join(failed)}; try again with a "
        f"network, or copy the file (md5 {file.md5}) to {folder} and name that with --data.path"
    )


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Let connections that are made meanwhile give up after a while; torchvision's never do."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: BaseException) -> str:
    if type(error) is URLError:  # whose text is in angle brackets
        return first_line(error.reason) if isinstance(error.reason, OSError) else str(error.reason)
    return first_line(error)
