"""Where Ray Train and Ray Tune write their own snapshots: nowhere.

Records are the truth, and nothing of the snapshots is read back. Both demand a storage and fill it
with pickles and JSON. In the sweep's storage those would be pickles that nobody may load, and a
full disk would stop a controller that Ray then starts forty times. So they get a file system that
takes everything and keeps nothing. Of all files it has only the marker by which a node recognises
it, and a snapshot without trials.
"""

import io
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

MARKER = ".validate_storage_marker"
# Tune looks for a snapshot at its end, and has the trials in memory
SNAPSHOT = "experiment_state-none.json"
NO_TRIALS = b'{"trial_data": []}'
PATH = "nowhere"


class _Nowhere(pafs.FileSystemHandler):
    """A file system that has the marker and no other file."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Nowhere)

    def __hash__(self) -> int:
        return hash(_Nowhere)

    def get_type_name(self) -> str:
        return "nowhere"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[Any]:
        kinds = (
            pafs.FileType.File if path.endswith(MARKER) else pafs.FileType.NotFound
            for path in paths
        )
        return [pafs.FileInfo(path, type=kind) for path, kind in zip(paths, kinds, strict=True)]

    def get_file_info_selector(self, selector: Any) -> list[Any]:
        return [pafs.FileInfo(f"{selector.base_dir}/{SNAPSHOT}", type=pafs.FileType.File)]

    def _nothing(self, *_: Any, **__: Any) -> None:
        """Change nothing."""

    create_dir = _nothing
    delete_dir = _nothing
    delete_dir_contents = _nothing
    delete_root_dir_contents = _nothing
    delete_file = _nothing
    move = _nothing
    copy_file = _nothing

    def open_input_stream(self, path: str) -> Any:
        if not path.endswith(SNAPSHOT):
            raise FileNotFoundError(path)
        return pa.PythonFile(io.BytesIO(NO_TRIALS), mode="r")

    def open_input_file(self, path: str) -> Any:
        raise FileNotFoundError(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return pa.PythonFile(io.BytesIO(), mode="w")

    open_append_stream = open_output_stream


def nowhere() -> dict[str, Any]:
    """Return the arguments of a RunConfig whose files are kept nowhere."""
    return {"storage_path": PATH, "storage_filesystem": pafs.PyFileSystem(_Nowhere())}
