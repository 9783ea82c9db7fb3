"""The parts of a .pt2 archive that torch may read: checked, and packed anew without the rest.

torch.export.load trusts a file. It unpickles the example inputs, evaluates the text of symbolic
shapes with sympy, imports the modules that tree specs name, calls whatever function a node names,
and writes node names into Python source that it executes. So every text of an archive must belong
to a small grammar before torch sees it, and torch reads a new archive that holds only what was
checked: what another reader of zip files would see in the old one does not matter.

    weights, constants     raw tensors that a table names, with no more elements than bytes
    models/model.json      what description.py accepts
    example inputs, extra  left out, and never unpickled
"""

import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

from sat_ray.models.pt2.description import LARGEST_INTEGER, checked_value, refused
from sat_ray.utils.import_string import first_line

LONGEST_JSON = 64 * 1024**2  # of a description; the one of a DenseNet-121 has 1.3 MB
# Elements that a table may name, per byte of all its tensors: weights may be shared.
SHARED_WEIGHTS = 4

_MODEL = "models/model.json"
_TABLES = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_EXAMPLES = "data/sample_inputs/model.pt"
_PLAIN = re.compile(
    r"archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id"
)
_RAW = re.compile(r"data/(?:weights/weight|constants/tensor)_\d{1,7}")
_LEFT_OUT = re.compile(rf"extra/.*|{re.escape(_EXAMPLES)}")
_HARMLESS = re.compile("|".join(one.pattern for one in (_RAW, _PLAIN, _LEFT_OUT)))


def checked_archive(data: bytes) -> bytes:
    """Return a .pt2 archive with the checked parts of another; ValueError is a sentence without its
    subject."""
    try:
        return _packed(_checked_parts(data))
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        UnicodeError,
    ) as error:
        kind = "is no .pt2 archive" if not zipfile.is_zipfile(io.BytesIO(data)) else "is damaged"
        raise ValueError(f"{kind} ({first_line(error)}); copy or export it again") from None


def _checked_parts(data: bytes) -> dict[str, bytes]:
    """Read every part that torch may see. Raises ValueError, and what zipfile raises on damage."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = [part for part in archive.infolist() if not part.is_dir()]
        names = [part.filename.partition("/")[2] for part in parts]
        roots = {part.filename.partition("/")[0] for part in parts}
        if len(set(names)) != len(names) or len(roots) > 1:
            raise refused("holds a part twice")
        for part, name in zip(parts, names, strict=True):
            if name not in (_MODEL, *_TABLES) and not _HARMLESS.fullmatch(name):
                raise refused(
                    f"holds the part {part.filename!r:.100}, which may be pickled or compiled code"
                )
            if part.compress_type != zipfile.ZIP_STORED:
                raise refused(
                    f"holds the compressed part {part.filename!r:.100}, whose size the file does "
                    "not bound"
                )
            if name in (_MODEL, *_TABLES) and part.file_size > LONGEST_JSON:
                raise refused(
                    f"has a description of {part.file_size:,} bytes; accepted: {LONGEST_JSON:,}"
                )
        if sum(part.file_size for part in parts) > len(data):
            raise refused("declares parts that are larger than the file")
        if missing := [name for name in (_MODEL, *_TABLES) if name not in names]:
            raise refused(f"holds no {missing[0]}")
        wanted = [
            part for part, name in zip(parts, names, strict=True) if not _LEFT_OUT.fullmatch(name)
        ]
        found = {part.filename.partition("/")[2]: archive.read(part) for part in wanted}
    for table in _TABLES:
        found[table] = _checked_json(
            found[table],
            "a damaged table",
            partial(_check_table, name=table, parts=found),
        )
    found[_MODEL] = _checked_json(found[_MODEL], "a damaged description", lambda value: None)
    return found | {_EXAMPLES: b""}


def _packed(parts: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in parts.items():
            archive.writestr(f"model/{name}", content)
    return sink.getvalue()


def _checked_json(data: bytes, damage: str, check: Callable[[Any], None]) -> bytes:
    """Return a JSON text with the checked values of another alone."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise refused(f"holds {damage} ({first_line(error)[:100]})") from None
    try:
        check(value)
        return json.dumps(checked_value(value, "")).encode()
    except (TypeError, KeyError, AttributeError, RecursionError, json.JSONDecodeError) as error:
        raise refused(f"holds {damage} ({first_line(error)[:100]})") from None


def _check_table(table: Any, name: str, parts: dict[str, bytes]) -> None:
    """Raise ValueError where a table names a pickled tensor, or more elements than its files could
    hold."""
    folder = name.rpartition("/")[0]
    elements = 0
    for tensor, entry in table["config"].items():
        path = f"{folder}/{entry['path_name']}"
        if entry["use_pickle"] is not False or not _RAW.fullmatch(path) or path not in parts:
            raise refused(f"holds a pickled tensor, or none, as {tensor!r:.100}")
        count = 1
        for size in entry["tensor_meta"]["sizes"]:
            count *= _whole(size["as_int"])
        if count > len(parts[path]):
            raise refused(
                f"declares {count:,} elements for {tensor!r:.100}, which has {len(parts[path]):,} "
                "bytes"
            )
        elements += count
    held = sum(len(content) for part, content in parts.items() if part.startswith(f"{folder}/"))
    held -= len(parts[name])
    if elements > SHARED_WEIGHTS * held:
        raise refused(f"declares {elements:,} elements, but holds {held:,} bytes of them")


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < LARGEST_INTEGER:
        raise refused(f"has the size {value!r:.50}")
    return value
