"""One table of cases for a folder on this disk and on a real S3 server: this session's own,
or the one SAT_RAY_TEST_S3 names.
"""

import contextlib
import errno
import gzip
import io
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from waiting import until

from sat_ray.storage.outages import is_away
from sat_ray.storage.preflight import check_writable
from sat_ray.storage.store import Storage
from sat_ray.utils.serialization import json_bytes

S3 = os.environ.get("SAT_RAY_TEST_S3", "")
WRITERS = 8


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """Return an empty folder."""
    if request.param == "local":
        yield Storage.at(tmp_path / "store")
    elif S3:
        yield Storage.at(f"{S3.rstrip('/')}/{uuid.uuid4().hex}")
    else:
        yield request.getfixturevalue("s3")


def test_what_is_written_is_read_back_and_a_second_write_replaces_it(storage: Storage) -> None:
    storage.write("a/b/c.bin", b"\x00\xff")
    assert storage.read("a/b/c.bin") == b"\x00\xff" and storage.exists("a/b/c.bin")
    storage.write("a/b/c.bin", b"")
    assert storage.read("a/b/c.bin") == b""


@pytest.mark.parametrize("name", ["a.tar.gz", "a.bz2", "a.zst"])
def test_no_name_makes_a_file_compressed_on_its_way(
    name: str, storage: Storage, tmp_path: Path
) -> None:
    data = gzip.compress(b"\x00" * 1000)
    (tmp_path / "source").write_bytes(data)
    storage.write(name, data)
    with open(tmp_path / "source", "rb") as source:
        storage.write_file(f"other-{name}", source)
    assert storage.commit(f"committed-{name}", data)
    assert storage.sizes("") == {
        name: len(data),
        f"other-{name}": len(data),
        f"committed-{name}": len(data),
    }
    assert all(storage.read(one) == data for one in storage.names(""))


def test_a_file_is_read_from_any_place(storage: Storage) -> None:
    data = os.urandom(100_000)
    storage.write("a/b.bin", data)
    assert storage.read("a/b.bin", offset=7, length=90_001) == data[7:90_008]
    assert (
        storage.read("a/b.bin", length=5) == data[:5]
        and storage.read("a/b.bin", offset=99_990) == data[99_990:]
    )
    with storage.open("a/b.bin") as stream:
        assert (
            stream.read(3) == data[:3]
            and stream.seek(50_000) == 50_000
            and stream.read(4) == data[50_000:50_004]
        )
        assert stream.seek(1) == 1 and stream.read() == data[1:]
    assert (
        storage.is_file("a/b.bin") and not storage.is_file("a") and not storage.is_file("a/c.bin")
    )
    for read in (storage.open, lambda path: storage.read(path, offset=1)):
        with pytest.raises(FileNotFoundError):
            read("a/c.bin")


def test_a_local_file_is_put_in_place_whole_and_replaces_what_was_there(
    storage: Storage,
) -> None:
    data = os.urandom(12_000_000)
    storage.write("a/b.bin", b"old")
    with tempfile.TemporaryFile() as source:
        source.write(data)
        storage.write_file("a/b.bin", source)
    assert storage.read("a/b.bin") == data and storage.names("a") == ["b.bin"]
    storage.write_file("a/b.bin", io.BytesIO())
    assert storage.read("a/b.bin") == b""


def test_json_comes_back_and_is_spelled_the_same_every_time(storage: Storage) -> None:
    storage.write_json("x.json", {"b": [1, 2.5, None], "a": "α"})
    assert storage.read_json("x.json") == {"a": "α", "b": [1, 2.5, None]}
    assert storage.read("x.json") == json_bytes(
        {"a": "α", "b": [1, 2.5, None]}
    ) and "α".encode() in storage.read("x.json")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"[" * 100_000, "is no JSON .its values are nested too deeply"),
        (b"[]", "must hold a JSON object, got a list"),
        (b"null", "must hold a JSON object, got a NoneType"),
    ],
)
def test_what_is_no_json_object_is_refused_with_the_name_of_the_file(
    data: bytes, reason: str, storage: Storage
) -> None:
    storage.write("x.json", data)
    with pytest.raises(ValueError, match=f"{storage.full('x.json')} {reason}") as caught:
        storage.read_object("x.json")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_a_file_not_found_error(storage: Storage) -> None:
    assert not storage.exists("nothing")
    with pytest.raises(FileNotFoundError):
        storage.read("nothing/at/all")


@pytest.mark.parametrize("target", ["pipe", "/dev/zero", "folder"])
def test_what_is_no_file_is_refused_and_not_read(target: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(target)
    for read in (Storage.at(tmp_path).read, Storage.at(tmp_path).open):
        with pytest.raises(OSError, match=r"link is no regular file; give one$"):
            read("link")


def test_a_commit_wins_once_and_never_replaces(storage: Storage) -> None:
    assert storage.commit("state/x.json", b"first") is True
    assert storage.commit("state/x.json", b"second") is False
    assert storage.read("state/x.json") == b"first"


def test_of_many_commits_at_once_exactly_one_wins_and_its_bytes_stay(storage: Storage) -> None:
    for attempt in range(5):
        ready = threading.Barrier(WRITERS)

        def commit(
            writer: int, path: str = f"race/{attempt}", ready: threading.Barrier = ready
        ) -> bool:
            ready.wait()
            return storage.commit(path, f"writer {writer}".encode() * 1000)

        with ThreadPoolExecutor(WRITERS) as pool:
            won = list(pool.map(commit, range(WRITERS)))
        assert sum(won) == 1
        assert storage.read(f"race/{attempt}") == f"writer {won.index(True)}".encode() * 1000
    assert storage.names("race") == [str(attempt) for attempt in range(5)]


def test_names_lists_the_files_of_one_folder_sorted(storage: Storage) -> None:
    for path in ("f/b", "f/a", "f/deeper/c", "g/d"):
        storage.write(path, b"x")
    assert storage.names("f") == ["a", "b"]
    assert storage.names("nothing") == []


def test_a_folder_that_another_process_makes_and_removes_is_listed_all_the_while(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "folder"
    churn = f"import os\nwhile True: os.mkdir({str(folder)!r}); os.rmdir({str(folder)!r})"
    other = subprocess.Popen([sys.executable, "-c", churn])
    storage = Storage.at(tmp_path)
    try:
        until(folder.exists, what="the folder")
        for _ in range(20_000):  # a listing failed about once in a thousand
            assert storage.names("folder") == []
        assert other.poll() is None
        until(lambda: not folder.exists(), what="the place without the folder")
    finally:
        other.kill()
        other.wait()


def test_a_moved_file_is_in_its_new_place_alone(storage: Storage) -> None:
    storage.write("state/x", b"x")
    storage.move("state/x", "aside/1/x")
    assert storage.read("aside/1/x") == b"x" and not storage.exists("state/x")


def test_a_child_is_a_folder_of_its_own(storage: Storage) -> None:
    storage.child("inner").write("x", b"x")
    assert storage.read("inner/x") == b"x" and storage.child("inner").names("") == ["x"]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", ".."])
def test_a_path_that_leaves_the_folder_is_refused(storage: Storage, path: str) -> None:
    for act in (
        storage.full,
        storage.child,
        storage.read,
        storage.exists,
        storage.names,
        lambda p: storage.write(p, b""),
    ):
        with pytest.raises(ValueError, match="leaves the storage folder"):
            act(path)
    with pytest.raises(ValueError, match="leaves"):
        storage.commit(path, b"")


def test_a_writable_folder_passes_and_keeps_no_probe(storage: Storage) -> None:
    check_writable(storage)
    assert storage.names("") == []


WRITER = """
import os, signal, sys, time
from sat_ray.storage.store import Storage

def stands_still(*args):
    print("written", flush=True)
    time.sleep(600)

os.replace = stands_still
Storage.at(sys.argv[1]).write("below/x", b"new")
"""


def test_a_writer_that_is_killed_leaves_what_was_there_and_its_temporary_is_removed_when_it_is_gone(
    tmp_path: Path,
) -> None:
    storage = Storage.at(tmp_path)
    storage.write("below/x", b"old")
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "written\n"
        (temporary,) = tmp_path.glob("below/.tmp-*")
        os.utime(temporary, (0, 0))
        assert storage.remove_abandoned() == [] and temporary.exists(), "its writer lives"
        writer.kill()
    assert storage.read("below/x") == b"old" and storage.names("below") == ["x"]
    os.utime(temporary)
    assert storage.remove_abandoned() == [], "it is young: a writer may be about to lock it"
    os.utime(temporary, (0, 0))
    assert storage.remove_abandoned() == [str(temporary)]
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["x"]


def test_a_write_that_fails_leaves_no_temporary(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="directory"):
        storage.write("x", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("act", ["write", "commit", "move", "write_file"])
def test_the_folder_is_flushed_after_its_names_have_changed(
    tmp_path: Path, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose name is not on the disk is lost with the power, however well its bytes are."""
    storage, done = Storage.at(tmp_path), list[tuple[str, str]]()
    storage.write("before", b"1")
    originals = {name: getattr(os, name) for name in ("fsync", "link", "replace")}
    for name, original in originals.items():

        def call(*args: Any, name: str = name, ours: Any = original) -> Any:
            place = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else ""
            done.append(
                (name, "folder" if place and os.path.isdir(place) else "file" if place else "")
            )
            return ours(*args)

        monkeypatch.setattr(os, name, call)
    calls: dict[str, Callable[[], object]] = {
        "write": lambda: storage.write("new/x", b"1"),
        "commit": lambda: storage.commit("new/x", b"1"),
        "move": lambda: storage.move("before", "new/x"),
        "write_file": lambda: storage.write_file("new/x", io.BytesIO(b"2")),
    }
    calls[act]()
    assert done[-1] == ("fsync", "folder")
    if act != "move":
        assert ("fsync", "file") in done[
            : [name for name, _ in done].index("link" if act == "commit" else "replace")
        ]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.EPERM, "Operation not permitted", "a", None, "b"),
            "its disk has no hard links, which commits need",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "no room is left"),
    ],
)
def test_a_disk_that_cannot_commit_is_refused_at_once(
    tmp_path: Path, error: OSError, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few machines that tests run on have a disk without hard links:
    its answer to link() is given here.
    """

    def refused(*args: object) -> None:
        raise error

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(
        ValueError,
        match=rf"storage .* cannot be written \({said}.*\); "
        r"choose a writable folder with --storage",
    ):
        check_writable(Storage.at(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_in_one_line_and_leaves_what_was_there(small_disk: Path) -> None:
    storage = Storage.at(small_disk)
    storage.write("x", b"old")
    check_writable(storage)
    (small_disk / "filler").write_bytes(bytes(1024**2 - 64 * 1024))
    for name, put in (("x", storage.write), ("y", storage.commit)):
        with pytest.raises(OSError, match="No space left on device") as full:
            put(name, bytes(200_000))
        assert full.value.filename == storage.full(name)
        # as it comes out of a Ray task
        assert pickle.loads(pickle.dumps(full.value)).filename == storage.full(name)
    assert storage.read("x") == b"old" and sorted(path.name for path in small_disk.iterdir()) == [
        "filler",
        "x",
    ]
    with contextlib.suppress(OSError), open(small_disk / "filler", "ab", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    with pytest.raises(
        ValueError, match=r"cannot be written \(no room is left: No space left on device\); choose"
    ) as caught:
        check_writable(storage)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [409, 503])
def test_an_answer_of_s3_that_may_be_another_the_next_time_is_no_answer(status: int) -> None:
    """409: another request for this object is under way; the commit is tried again,
    and not taken for lost.
    """
    answer: Any = {
        "ResponseMetadata": {"HTTPStatusCode": status},
        "Error": {"Code": "ConditionalRequestConflict"},
    }
    assert is_away(ClientError(answer, "PutObject"))
    assert not is_away(
        ClientError(answer | {"ResponseMetadata": {"HTTPStatusCode": 403}}, "PutObject")
    )


def test_a_commit_leaves_no_temporary_whoever_wins(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    assert [storage.commit("x", b"1"), storage.commit("x", b"2")] == [True, False]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_reader_sees_a_whole_file_while_it_is_replaced(tmp_path: Path) -> None:
    storage, stop, seen = Storage.at(tmp_path), threading.Event(), set()
    versions = [bytes([value]) * 200_000 for value in (1, 2)]
    storage.write("x", versions[0])

    def read() -> None:
        while not stop.is_set():
            seen.add(storage.read("x"))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(40):
        storage.write("x", versions[turn % 2])
    stop.set()
    reader.join()
    assert seen <= set(versions)


def test_storage_under_a_file_says_why_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        ValueError,
        match=r"storage .*/file/x cannot be written \(.*\); "
        r"choose a writable folder with --storage",
    ) as caught:
        check_writable(Storage.at(tmp_path / "file" / "x"))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_bad_scheme_is_refused_with_what_is_allowed() -> None:
    for uri in ("http://host/x", "gs://bucket/x", "hdfs://x", "s3://", "s3:///x", "S3://bucket/x"):
        with pytest.raises(ValueError, match=r"must be a local folder or s3://bucket/prefix, got"):
            Storage.at(uri)


def test_a_relative_folder_a_file_uri_and_a_trailing_slash_name_the_same_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        Storage.at("x").uri
        == Storage.at(f"file://{tmp_path}/x").uri
        == Storage.at(f"{tmp_path}/x/").uri
        == f"{tmp_path}/x"
    )
    assert (
        Storage.at("s3://bucket/x/").uri == "s3://bucket/x"
        and not Storage.at("s3://bucket/x").is_local
    )
