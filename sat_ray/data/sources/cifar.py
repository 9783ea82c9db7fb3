"""CIFAR-10 and CIFAR-100 from the official archives.

Both the Python and the binary version are read, packed or unpacked.

The image id is the place in the official order: the train batches one after another, then the test
images. Both versions hold the same images in the same order, so they make the same dataset. Format:
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import tarfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sat_ray.data.sources.base import LayoutError, Raw
from sat_ray.data.sources.cifar_pickle import UnsafePickleError, read_batch
from sat_ray.storage.s3_path import Folder

SIDE = 32
PIXELS = 3 * SIDE * SIDE
MOST_BYTES = 256 * 1024**2  # of one file: the largest, CIFAR-100's train images, has 155 MB


def _read(file: Folder) -> bytes:
    """Return the bytes of a file; LayoutError where it has more than any file of the family."""
    with file.open("rb") as stream:
        data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise LayoutError(f"{file.name} has more than {MOST_BYTES:,} bytes")
    return data


@dataclass(frozen=True)
class Version:
    """One of a dataset's two versions.

    archive: its name; folder: inside the archive; train, test, names: the files that hold train
    images, test images and class names.
    """

    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str

    @property
    def files(self) -> tuple[str, ...]:
        """Return every file that is needed."""
        return (*self.train, self.test, self.names)

    def find(self, path: Folder) -> dict[str, bytes] | None:
        """Return the files below `path`, a folder or the archive itself.

        Returns None where this version is not there at all.
        """
        for folder in (path / self.folder, path):
            if (folder / self.test).is_file():
                return {
                    name: _read(folder / name) for name in self.files if (folder / name).is_file()
                }
        archive = path if path.is_file() else path / self.archive
        return self._unpack(archive) if archive.is_file() else None

    def _unpack(self, archive: Folder) -> dict[str, bytes] | None:
        found = {}
        try:
            with archive.open("rb") as packed, tarfile.open(fileobj=packed) as tar:
                for member in tar:
                    folder, _, name = member.name.removeprefix("./").rpartition("/")
                    if member.isfile() and folder == self.folder and name in self.files:
                        stream = tar.extractfile(member)
                        assert stream is not None
                        if member.size > MOST_BYTES:
                            raise LayoutError(
                                f"{name} in {archive.name} must have at most {MOST_BYTES:,} bytes, "
                                f"got {member.size:,}"
                            )
                        found[name] = stream.read()
        except (tarfile.TarError, EOFError, OSError) as error:
            raise LayoutError(f"{archive.name} is damaged ({type(error).__name__})") from None
        return found or None


@dataclass(frozen=True)
class Cifar:
    """A dataset of the family.

    labels: the label that counts, in Python batches; label_byte: its place in a binary record.
    """

    name: str
    classes: int
    python: Version
    binary: Version
    labels: str
    label_names: str
    label_byte: int
    label_bytes: int

    @property
    def layout(self) -> str:
        """Show what a folder may hold."""
        choices = (
            f"{v.archive} or {v.folder}/ ({', '.join(v.files)})" for v in (self.python, self.binary)
        )
        return "the official archive, or a folder with " + ", or ".join(choices)

    def read(self, path: Folder) -> Raw:
        """Read all images. Raises LayoutError naming the file that is missing or wrong."""
        for version, parse, read_names in (
            (self.python, self._python_batch, self._python_names),
            (self.binary, self._binary_batch, _binary_names),
        ):
            files = version.find(path)
            if files is not None:
                return self._read(version, files, parse, read_names)
        raise LayoutError("it holds neither version of the dataset")

    def _read(
        self,
        version: Version,
        files: dict[str, bytes],
        parse: Callable[[bytes], tuple[np.ndarray, np.ndarray]],
        read_names: Callable[[bytes], tuple[str, ...]],
    ) -> Raw:
        if missing := [name for name in version.files if name not in files]:
            raise LayoutError(f"{version.folder} lacks {', '.join(missing)}")
        batches = []
        for name in (*version.train, version.test):
            try:
                images, labels = parse(files[name])
            except ValueError as error:
                raise LayoutError(f"{name} is not a batch of {self.name}: {error}") from None
            if not len(labels) or labels.min() < 0 or labels.max() >= self.classes:
                raise LayoutError(
                    f"{name} is not a batch of {self.name}: labels are not in 0 to "
                    f"{self.classes - 1}"
                )
            batches.append((images.reshape(-1, 3, SIDE, SIDE), labels))
        names = read_names(files[version.names])
        if len(names) != self.classes:
            raise LayoutError(f"{version.names} names {len(names)} classes, not {self.classes}")
        images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        return Raw(
            images,
            labels,
            names,
            held_out={"test": np.arange(len(labels) - len(batches[-1][1]), len(labels))},
        )

    def _python_batch(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        batch = read_batch(data)
        images = batch.get("data")
        labels = batch.get(self.labels)
        if (
            not isinstance(images, np.ndarray)
            or not isinstance(labels, list)
            or images.shape != (len(labels), PIXELS)
        ):
            raise ValueError(f"it has no 'data' of (N, {PIXELS}) with N '{self.labels}'")
        if not all(isinstance(label, int) for label in labels):
            raise ValueError(f"its '{self.labels}' are not whole numbers")
        return images, np.array(labels, dtype=np.int64)

    def _python_names(self, data: bytes) -> tuple[str, ...]:
        try:
            names = read_batch(data).get(self.label_names)
        except UnsafePickleError as error:
            raise LayoutError(f"{self.python.names}: {error}") from None
        return (
            tuple(name.decode() for name in names if isinstance(name, bytes))
            if isinstance(names, list)
            else ()
        )

    def _binary_batch(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        record = self.label_bytes + PIXELS
        if len(data) % record:
            raise ValueError(f"its {len(data)} bytes are no multiple of {record}")
        rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, record)
        return rows[:, self.label_bytes :], rows[:, self.label_byte].astype(np.int64)


def _binary_names(data: bytes) -> tuple[str, ...]:
    return tuple(line.strip() for line in data.decode().splitlines() if line.strip())


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR10 = Cifar(
    name="CIFAR-10",
    classes=10,
    python=Version(
        "cifar-10-python.tar.gz", "cifar-10-batches-py", _BATCHES, "test_batch", "batches.meta"
    ),
    binary=Version(
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-bin",
        tuple(f"{n}.bin" for n in _BATCHES),
        "test_batch.bin",
        "batches.meta.txt",
    ),
    labels="labels",
    label_names="label_names",
    label_byte=0,
    label_bytes=1,
)
CIFAR100 = Cifar(
    name="CIFAR-100",
    classes=100,
    python=Version("cifar-100-python.tar.gz", "cifar-100-python", ("train",), "test", "meta"),
    binary=Version(
        "cifar-100-binary.tar.gz",
        "cifar-100-binary",
        ("train.bin",),
        "test.bin",
        "fine_label_names.txt",
    ),
    labels="fine_labels",
    label_names="fine_label_names",
    label_byte=1,  # after the coarse label
    label_bytes=2,
)
