"""A dataset before it is prepared: images in memory or in their files, and official splits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sat_ray.data.images import CorruptImageError
from sat_ray.data.sources.download import cache_folder, fetch
from sat_ray.data.split_ids import by_hash, split_by_hash, split_officially
from sat_ray.storage.local_disk import NotAFileError
from sat_ray.storage.s3_path import Folder, RemotePath, folder_at, read_range

MOST_BYTES = 1024**3  # of one image file
PATH = "data.path"  # the settings of images, for messages
EXTRA = "data.extra"
EXTRA_PATH = "data.extra_path"
SHARE = 0.1  # of the images, held out for each split that a folder of images does not come with


class LayoutError(ValueError):
    """A folder does not hold what a dataset's reader looks for."""


class UnusableImagesError(ValueError):
    """A user's function returned images, and they are no dataset to train on."""


@dataclass(frozen=True)
class Raw:
    """A dataset in memory, in its official order.

    images: (N, C, H, W) uint8; labels: (N,) int64; class_names: one per class.

    held_out: image ids of the splits that it comes with: "test" and perhaps "val".
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    held_out: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)  # there may be a million
class Place:
    """The bytes of one image: all of a file, or `length` of them from `offset` inside an archive.

    name: what people call it; path: of the file, absolute or on S3; stamp: size and time of the
    last change, where they were looked at.
    """

    name: str
    path: str
    offset: int = 0
    length: int = -1
    stamp: str = ""

    def read(self) -> bytes:
        """Return the bytes.

        Raises CorruptImageError for what is no regular file, and for one of more than MOST_BYTES.
        """
        try:
            return read_range(self.path, self.offset, self.length, most=MOST_BYTES)
        except NotAFileError as error:
            raise CorruptImageError(str(error)) from None


@dataclass(frozen=True)
class Listing:
    """A dataset of encoded images that are still in their files; otherwise like Raw."""

    images: Sequence[Place]
    labels: np.ndarray
    class_names: tuple[str, ...]
    held_out: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """How to read a dataset, and how many images it has and holds out for test and val.

    layout: what its folder looks like; empty where none is needed, and then `read` takes no
    argument. images: 0 where that is known only after a look; a folder that holds another number of
    images than this keeps the shares of test and val. encoded: its images are files to decode, so
    they may be resized and stored as JPEG. anonymous: the folder says which images these are.
    shape: (C, H, W) where all are of one size, classes: how many there are; None and 0 where that
    is known only after a look. remote: `read` takes a folder on S3 as well. package, installed: a
    Debian package that holds the dataset, and where it puts it; downloader: name of torchvision's
    class that has the addresses and checksums of its official files. optional_path: `read` works
    without a folder too.
    """

    name: str
    read: Callable[..., Raw | Listing]
    images: int
    test: int
    val: int
    about: str
    layout: str = ""
    encoded: bool = False
    anonymous: bool = False
    shape: tuple[int, int, int] | None = None
    classes: int = 0
    remote: bool = False
    package: str = ""
    installed: str = ""
    downloader: str = ""
    optional_path: bool = False

    def open(self, path: str = "", *, download: bool = False, field: str = PATH) -> Raw | Listing:
        """Read the dataset, or list its images. Raises LayoutError with the layout wanted.

        path: its folder, absolute or from here, or on S3; "" for where the package puts it.
        download: fetch the official files where they are not there: into that folder, without one
        into a cache; DownloadError says why it failed. field: setting of the path, for messages.
        """
        self.require_path(path, download=download, field=field)
        if not self.layout or (self.optional_path and not path):
            return self.read()
        named = path or (self.installed if self._is_installed() else str(cache_folder(self.name)))
        folder = folder_at(named)
        try:
            return self._read(folder)
        except LayoutError as error:
            if not download or isinstance(folder, RemotePath):
                raise LayoutError(f"{field} {named}: {error}; {self._allowed()}") from None
        fetch(self.downloader, folder)
        try:
            return self._read(folder)
        except LayoutError as error:
            raise LayoutError(f"{field} {named}: {error}; {self._allowed()}") from None

    def _read(self, folder: Folder) -> Raw | Listing:
        if isinstance(folder, RemotePath) and not self.remote:
            raise LayoutError(
                "it is on S3, and user-defined data sets are read from a local folder"
            )
        if not folder.exists():
            raise LayoutError("it is not there")
        return self.read(folder)

    def require_path(self, path: str, *, download: bool = False, field: str = PATH) -> None:
        """Raise LayoutError where a folder is needed, none is named, and none is found.

        The message names the layout that is needed. field: setting of the path.
        """
        if self.needs(path, download=download):
            raise LayoutError(f"{field} must not be empty; {self._allowed()}")

    def require_there(self, path: str, *, download: bool = False, field: str = PATH) -> None:
        """Raise LayoutError where the place that is named does not exist; nothing is read."""
        if self.layout and path and not download and not folder_at(path).exists():
            raise LayoutError(f"{field} {path}: it is not there; {self._allowed()}")

    def needs(self, path: str, *, download: bool = False) -> bool:
        """Return whether a folder is needed, none is named, and none is found."""
        found = path or download or self.optional_path or self._is_installed()
        return bool(self.layout) and not found

    def _is_installed(self) -> bool:
        return bool(self.installed) and Path(self.installed).is_dir()

    def _allowed(self) -> str:
        """Say what a folder must hold, and the other ways to get the images."""
        ways = [f"for {self.name} give {self.layout}"]
        if self.package:
            ways.append(
                f"or install Debian's package (apt-get install {self.package}), which puts it in "
                f"{self.installed}"
            )
        if self.downloader:
            ways.append("or give --data.download, which fetches the official files")
        return "; ".join(ways)

    def splits(self, found: Raw | Listing) -> dict[str, np.ndarray]:
        """Return the image ids of every split: the official splits, the rest by hash.

        They ascend, but for those of encoded train images, which come sorted by class: these are in
        the order of their hash, so that every shard is a sample of all classes.
        """
        splits = self._splits(found)
        return (
            splits | {"train": by_hash(self.name, splits["train"].tolist())}
            if self.encoded
            else splits
        )

    def _splits(self, found: Raw | Listing) -> dict[str, np.ndarray]:
        count = len(found.labels)
        if "test" not in found.held_out:
            test, val = (_share(part, self.images, count) for part in (self.test, self.val))
            return split_by_hash(self.name, count, test=test, val=val)
        train = count - sum(map(len, found.held_out.values()))
        return split_officially(
            self.name, count, found.held_out, val=_share(self.val, self.images - self.test, train)
        )


def _share(part: int, whole: int, count: int) -> int:
    return max(1, round(count * part / whole if whole else count * SHARE))
