"""Networks of the package timm are written `timm:convnext_tiny`.

Importing timm loads torch and takes seconds, so its names are read from its source files.
"""

import functools
import importlib.metadata
import importlib.util
import re
from pathlib import Path

from sat_ray.utils.import_string import TIMM
from sat_ray.utils.names import suggest

PREFIX = f"{TIMM}:"
_REGISTERED = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)


def is_timm(name: str) -> bool:
    """Say whether a name is written as that of a network of timm."""
    return name.startswith(PREFIX)


def require_timm(*, what: str) -> Path:
    """Return the folder of timm; ValueError in one line where it is not installed.

    what: what needs it, for the message.
    """
    folder = _folder()
    if folder is None:
        raise ValueError(f"{what} needs timm, which is not installed: pip install 'sat_ray[timm]'")
    return folder


def _folder() -> Path | None:
    found = importlib.util.find_spec(TIMM)
    return None if found is None or found.origin is None else Path(found.origin).parent


def timm_version() -> str:
    """Return the version of timm, which determines what its networks compute."""
    return importlib.metadata.version(TIMM)


@functools.cache
def timm_names(folder: Path) -> frozenset[str]:
    """Return the names of all networks of the timm in a folder."""
    sources = (path.read_text(encoding="utf-8") for path in sorted(folder.glob("models/*.py")))
    return frozenset(name for source in sources for name in _REGISTERED.findall(source))


def as_timm_name(name: str) -> str:
    """Return `timm:NAME` for the bare name of a network of timm, "" for any other."""
    folder = _folder()
    bare = name.partition(".")[0]
    return f"{PREFIX}{bare}" if folder is not None and bare in timm_names(folder) else ""


def check_timm_name(name: str, *, field: str) -> None:
    """Raise ValueError, in one line, where timm has no network of this name."""
    known = timm_names(require_timm(what=f"{field} {name}"))
    bare, _, tag = name.removeprefix(PREFIX).partition(".")
    if bare not in known:
        others = suggest(bare, known, otherwise="timm.list_models() in Python lists all names")
        raise ValueError(f"{field} {name} is unknown to timm; {others}")
    if tag:
        raise ValueError(
            f"{field} must name a network without weights, {PREFIX}{bare}, got {name}; weights are "
            f"named by --model.initial-weights {PREFIX}{tag}"
        )
