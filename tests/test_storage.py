"""One table of cases for a folder on this disk and on a real S3 server: this session's own, or the one SAT_RAY_TEST_S3 names."""

import gzip
import os
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sat_ray.storage import Storage, check_writable, json_bytes

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
def test_no_name_makes_a_file_compressed_on_its_way(name: str, storage: Storage, tmp_path: Path) -> None:
    data = gzip.compress(b"\x00" * 1000)
    (tmp_path / "source").write_bytes(data)
    storage.write(name, data)
    storage.write_file(f"other-{name}", tmp_path / "source")
    assert storage.commit(f"committed-{name}", data)
    assert storage.sizes("") == {name: len(data), f"other-{name}": len(data), f"committed-{name}": len(data)}
    assert all(storage.read(one) == data for one in storage.names(""))


def test_a_file_is_read_from_any_place(storage: Storage) -> None:
    data = os.urandom(100_000)
    storage.write("a/b.bin", data)
    assert storage.read("a/b.bin", offset=7, length=90_001) == data[7:90_008]
    assert storage.read("a/b.bin", length=5) == data[:5] and storage.read("a/b.bin", offset=99_990) == data[99_990:]
    with storage.open("a/b.bin") as stream:
        assert stream.read(3) == data[:3] and stream.seek(50_000) == 50_000 and stream.read(4) == data[50_000:50_004]
        assert stream.seek(1) == 1 and stream.read() == data[1:]
    assert storage.is_file("a/b.bin") and not storage.is_file("a") and not storage.is_file("a/c.bin")
    for read in (storage.open, lambda path: storage.read(path, offset=1)):
        with pytest.raises(FileNotFoundError):
            read("a/c.bin")


def test_a_local_file_is_put_in_place_whole_and_replaces_what_was_there(storage: Storage, tmp_path: Path) -> None:
    source, data = tmp_path / "source.bin", os.urandom(12_000_000)
    source.write_bytes(data)
    storage.write("a/b.bin", b"old")
    storage.write_file("a/b.bin", source)
    assert storage.read("a/b.bin") == data and storage.names("a") == ["b.bin"]
    source.write_bytes(b"")
    storage.write_file("a/b.bin", source)
    assert storage.read("a/b.bin") == b""


def test_json_comes_back_and_is_spelled_the_same_every_time(storage: Storage) -> None:
    storage.write_json("x.json", {"b": [1, 2.5, None], "a": "α"})
    assert storage.read_json("x.json") == {"a": "α", "b": [1, 2.5, None]}
    assert storage.read("x.json") == json_bytes({"a": "α", "b": [1, 2.5, None]}) and "α".encode() in storage.read("x.json")


def test_a_missing_file_is_a_file_not_found_error(storage: Storage) -> None:
    assert not storage.exists("nothing")
    with pytest.raises(FileNotFoundError):
        storage.read("nothing/at/all")


def test_a_commit_wins_once_and_never_replaces(storage: Storage) -> None:
    assert storage.commit("state/x.json", b"first") is True
    assert storage.commit("state/x.json", b"second") is False
    assert storage.read("state/x.json") == b"first"


def test_of_many_commits_at_once_exactly_one_wins_and_its_bytes_stay(storage: Storage) -> None:
    for attempt in range(5):
        ready = threading.Barrier(WRITERS)

        def commit(writer: int, path: str = f"race/{attempt}", ready: threading.Barrier = ready) -> bool:
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


def test_a_moved_file_is_in_its_new_place_alone(storage: Storage) -> None:
    storage.write("state/x", b"x")
    storage.move("state/x", "aside/1/x")
    assert storage.read("aside/1/x") == b"x" and not storage.exists("state/x")


def test_a_child_is_a_folder_of_its_own(storage: Storage) -> None:
    storage.child("inner").write("x", b"x")
    assert storage.read("inner/x") == b"x" and storage.child("inner").names("") == ["x"]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", ".."])
def test_a_path_that_leaves_the_folder_is_refused(storage: Storage, path: str) -> None:
    for act in (storage.full, storage.child, storage.read, storage.exists, storage.names, lambda p: storage.write(p, b"")):
        with pytest.raises(ValueError, match="leaves the storage folder"):
            act(path)
    with pytest.raises(ValueError, match="leaves"):
        storage.commit(path, b"")


def test_a_writable_folder_passes_and_keeps_no_probe(storage: Storage) -> None:
    check_writable(storage)
    assert storage.names("") == []


def test_a_writer_that_dies_before_the_rename_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage.at(tmp_path)
    storage.write("x", b"old")

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        storage.write("x", b"new")
    assert storage.read("x") == b"old"
    assert storage.names("") == ["x"] and len(list(tmp_path.iterdir())) == 2  # the temporary is there, and is not listed


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
    with pytest.raises(ValueError, match=r"storage .*/file/x cannot be written \(.*\); choose a writable folder with --storage") as caught:
        check_writable(Storage.at(tmp_path / "file" / "x"))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_bad_scheme_is_refused_with_what_is_allowed() -> None:
    for uri in ("http://host/x", "gs://bucket/x", "hdfs://x"):
        with pytest.raises(ValueError, match=r"allowed: a local folder or s3://bucket/prefix"):
            Storage.at(uri)


def test_a_relative_folder_a_file_uri_and_a_trailing_slash_name_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Storage.at("x").uri == Storage.at(f"file://{tmp_path}/x").uri == Storage.at(f"{tmp_path}/x/").uri == f"{tmp_path}/x"
    assert Storage.at("s3://bucket/x/").uri == "s3://bucket/x" and not Storage.at("s3://bucket/x").is_local
