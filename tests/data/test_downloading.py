"""Official files fetched by torchvision's downloader, from a server of this machine."""

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
import torchvision.datasets
from archives import cifar, idx_files, tarred, unpack, zipped

from sat_ray.data.sources import download as downloading
from sat_ray.data.sources.download import DownloadError, official_files
from sat_ray.data.sources.registry import DATASETS
from sat_ray.integrations import stages
from sat_ray.integrations.command_line.checks.claims import sweep_of
from sat_ray.integrations.command_line.checks.prepared import described
from sat_ray.integrations.command_line.parsing import parse
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import DataSettings
from sat_ray.sweep.recipes import DEFAULT, RECIPES

CLASSES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST"}


class Server(http.server.ThreadingHTTPServer):
    """A server of files in memory that counts what was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        """Return the address of its root, with a slash at the end."""
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with a file, or 404."""

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        name = self.path.lstrip("/")
        self.server.asked.append(name)
        if name not in self.server.files:
            self.send_error(404)
            return
        data = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def official(name: str) -> dict[str, bytes]:
    """Return small official files of a data set."""
    if name.startswith("cifar"):
        packed = tarred(cifar(name)[0], mode="w:gz")
        return {
            "cifar-10-python.tar.gz" if name == "cifar10" else "cifar-100-python.tar.gz": packed
        }
    return zipped(idx_files()[0])


@contextlib.contextmanager
def serving(
    name: str, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """Point torchvision's downloader to a server here, with the checksums of the small files."""
    monkeypatch.setenv("no_proxy", "*")
    right = official(name)
    kind = getattr(torchvision.datasets, DATASETS[name].downloader)
    with Server(files) as server:
        if name.startswith("cifar"):
            ((archive, data),) = right.items()
            monkeypatch.setattr(kind, "url", f"{server.address}{archive}")
            monkeypatch.setattr(kind, "tgz_md5", md5(data).hexdigest())
        else:
            sums = [(one, md5(data).hexdigest()) for one, data in right.items()]
            monkeypatch.setattr(kind, "mirrors", [f"{server.address}gone/", server.address])
            monkeypatch.setattr(kind, "resources", sums)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist", "cifar10", "cifar100"])
def test_official_files_are_fetched_once_and_then_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "folder"
    with serving(name, official(name), monkeypatch) as server:
        first = DATASETS[name].open(str(path), download=True)
        asked = list(server.asked)
        again = DATASETS[name].open(str(path), download=True)
        assert server.asked == asked, "what is there is not fetched again"
    assert (first.images == again.images).all()  # type: ignore[union-attr]
    assert sorted(one.name for one in path.iterdir()) == sorted(official(name))
    without = DATASETS[name].open(str(path))
    assert (without.labels == first.labels).all()


def test_without_a_folder_they_are_kept_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving("mnist", official("mnist"), monkeypatch):
        assert len(DATASETS["mnist"].open("", download=True).labels) == 42
    assert len(list((tmp_path / "cache" / "sat_ray" / "mnist").iterdir())) == 4
    assert len(DATASETS["mnist"].open("", download=True).labels) == 42, "no server is needed now"


def test_a_file_with_a_wrong_checksum_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: data[:-1] for name, data in official("cifar10").items()}
    with (
        serving("cifar10", files, monkeypatch),
        pytest.raises(
            DownloadError, match=r"data\.download cannot fetch cifar-10-python"
        ) as caught,
    ):
        DATASETS["cifar10"].open(str(tmp_path), download=True)
    assert "corrupted" in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_another_file_of_the_same_name_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = zipped(idx_files(seed=1)[0])
    del other["t10k-labels-idx1-ubyte.gz"]
    unpack(other, tmp_path)
    with (
        serving("mnist", official("mnist"), monkeypatch) as server,
        pytest.raises(DownloadError, match=r"does not replace \S+/train-images-idx3-ubyte\.gz"),
    ):
        DATASETS["mnist"].open(str(tmp_path), download=True)
    assert not server.asked
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == other


def test_a_server_that_refuses_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving("mnist", {}, monkeypatch) as server:
        address = server.address
    with pytest.raises(DownloadError) as caught:
        DATASETS["mnist"].open(str(tmp_path), download=True)
    line = str(caught.value)
    assert line.startswith("data.download cannot fetch train-images-idx3-ubyte.gz from http://")
    assert f"{address}train-images-idx3-ubyte.gz ([Errno 111] Connection refused)" in line
    assert "name that with --data.path" in line and "\n" not in line


def test_a_server_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloading, "TIMEOUT_SECONDS", 0.2)
    before = socket.getdefaulttimeout()
    with serving("cifar10", {}, monkeypatch), socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/cifar-10-python.tar.gz"
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
        started = time.monotonic()
        with pytest.raises(DownloadError, match=r"timed out.*; try again with a network"):
            DATASETS["cifar10"].open(str(tmp_path), download=True)
        assert time.monotonic() - started < 200
    assert socket.getdefaulttimeout() == before


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match=r"cannot write to \S+/file/inside .*--data\.path"):
        DATASETS["cifar10"].open(str(tmp_path / "file" / "inside"), download=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "digits"}, r"data\.download must be False for digits, got True"),
        ({"dataset": "imagenet"}, r"data\.download must be False for imagenet, got True"),
        ({"dataset": "mnist", "path": "s3://b/x"}, r"data\.path must be a local folder with"),
    ],
)
def test_a_download_that_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSettings(download=True, **settings)


def test_how_the_files_come_is_no_part_of_what_a_sweep_is() -> None:
    words = ["cifar10_resnet18", "--storage", "/tmp/nowhere"]
    plain, fetched = (
        parse([*words, *more], RECIPES, default=DEFAULT, about="")
        for more in ([], ["--data.download"])
    )
    assert fetched.config.data.download and not plain.config.data.download
    assert fetched.name == plain.name == "cifar10_resnet18"


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist", "cifar10", "cifar100"])
def test_torchvision_names_files_that_the_reader_looks_for(name: str) -> None:
    source = DATASETS[name]
    for file in official_files(source.downloader):
        assert file.name.removesuffix(".gz") in source.layout.replace(".gz", "")
        assert file.urls and all(url.startswith("http") for url in file.urls)
        assert len(file.md5) == 32


def test_the_prepare_stage_fetches_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["digits", "--data.dataset", "cifar10", "--data.download"]
    words += ["--data.path", str(tmp_path / "in"), "--storage", str(tmp_path / "runs")]
    with serving("cifar10", official("cifar10"), monkeypatch):
        made = stages.prepare(sweep_of(parse(words, RECIPES, default=DEFAULT, about="")))
    assert made.manifest["splits"] == {"train": 29, "val": 1, "test": 6}
    assert "cifar10 has 60,000 images, this one 36" in described(made)
    assert Storage.at(made.uri).exists("manifest.json")
