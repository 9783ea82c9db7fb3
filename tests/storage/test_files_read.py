"""The files that a block reads are named, and those that say nothing about a model are not."""

import os
import threading
from pathlib import Path

import numpy as np

from sat_ray.storage.files_read import FilesRead


def test_files_of_a_user_are_named_however_they_are_opened(tmp_path: Path) -> None:
    names = [
        tmp_path / name for name in ("a.txt", "b.npy", "c.bin", "before", "after", "elsewhere")
    ]
    np.save(names[1], np.zeros(2))
    for path in (names[0], *names[2:]):
        path.write_text("x")
    read = FilesRead()
    names[3].read_text()
    with read.noted():
        names[0].read_text()
        np.load(names[1])
        os.close(os.open(bytes(names[2]), os.O_RDONLY))
        other = threading.Thread(target=names[5].read_text)
        other.start()
        other.join()
    names[4].read_text()
    first, second, third = (str(path) for path in names[:3])
    assert read.warning("it").startswith(f"it reads {first}, {second}, {third} while it computes")
    assert read.warning("it").count(str(tmp_path)) == 3


def test_code_the_system_and_what_is_written_are_not_named(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("x = 1\n")
    read = FilesRead()
    with read.noted():
        (tmp_path / "module.py").read_text()
        (tmp_path / "written").write_text("x")
        Path("/proc/self/status").read_text()
        Path(np.__file__).with_name("version.pyi").exists()
        open(os.devnull).close()
        missing = tmp_path / "missing"
        assert not missing.exists()
    assert read.warning("it") == ""
