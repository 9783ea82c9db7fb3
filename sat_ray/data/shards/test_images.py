"""How the test images of a dataset of image files are stored, and which ones.

They are the images that published figures are measured on, so their pixels are those of everybody
else: never compressed again, and resized as the field does it. On ImageNet that is torchvision's
Resize(256) and CenterCrop(224), and 5,000 images that a list names.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sat_ray.data.images import Storing
from sat_ray.data.shards.changes import ChangedDataError
from sat_ray.data.sources.base import Listing, Raw
from sat_ray.storage.local_disk import NotAFileError
from sat_ray.storage.s3_path import folder_at, read_text
from sat_ray.utils.names import printable
from sat_ray.utils.serialization import sha256

FIELD = "test_images"  # of a manifest
SHOWN = 3
MOST_BYTES = 256 * 1024**2  # of a list; one of a million long names has 100 MB


@dataclass(frozen=True)
class TestImages:
    """Settings of the test split.

    resize: the short side is resized to it before the centre is cut, 0: to the side of the stored
    square; names: file with the name of one image a line (IMAGE or CLASS/IMAGE), local or on S3,
    "" for all images.
    """

    __test__ = False  # its name begins as pytest's tests do

    resize: int = 0
    names: str = ""

    def require_readable(self) -> None:
        """Raise ValueError where there is a list and it cannot be read, or names no image."""
        if self.names and not _lines(_text(self.names)):
            raise ValueError(f"data.test_list {self.names} must name images, one a line, got none")

    def storing(self, storing: Storing) -> Storing:
        """Return how the test split is stored, where the others are stored like this."""
        return replace(storing, encoding="raw", resize=self.resize)

    def chosen(
        self, splits: dict[str, np.ndarray], found: Raw | Listing
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the splits with the named test images, in the file's order, and what was chosen.

        Raises ValueError, in one line, for names that are not there or not one image's.
        """
        if not self.names:
            return splits, {}
        assert isinstance(found, Listing)
        ids = splits["test"]
        text = _text(self.names)
        named = _named(_lines(text), ids, found, file=self.names)
        left_out = len(ids) - len(named)
        digest = sha256(text.encode())
        return splits | {"test": named}, {"list_sha256": digest, "left_out": left_out}

    def described(self, storing: Storing, chosen: dict[str, Any]) -> dict[str, Any]:
        """Return what a manifest says about test images that are stored in their own way."""
        if not (self.resize or chosen or storing.encoding != "raw"):
            return {}
        return {FIELD: {"encoding": "raw", "resize": self.resize, **chosen}}

    def check_unchanged(self, manifest: dict[str, Any]) -> None:
        """Raise ChangedDataError where the list is another than that of the prepared dataset.

        A list that is not there any more is not needed.
        """
        if not self.names or not folder_at(self.names).exists():
            return
        if manifest.get(FIELD, {}).get("list_sha256") != sha256(_text(self.names).encode()):
            raise ChangedDataError(
                f"data.test_list {self.names} has changed since the dataset was prepared; put the "
                "earlier list back, or name the new one otherwise"
            )


def _text(path: str) -> str:
    try:
        return read_text(path, most=MOST_BYTES)
    except NotAFileError as error:
        reason = str(error)
    except FileNotFoundError:
        reason = "it is not there"
    except UnicodeDecodeError:
        reason = "it is no UTF-8 text"
    except OSError as error:
        reason = error.strerror or type(error).__name__
    raise ValueError(f"data.test_list must be a text file of image names, got {path} ({reason})")


def _lines(text: str) -> list[str]:
    """Return the lines that are not empty, without the mark that Windows puts before the first."""
    lines = (line.strip() for line in text.removeprefix("\ufeff").split("\n"))
    return [line for line in lines if line]


def _named(lines: list[str], ids: np.ndarray, found: Listing, *, file: str) -> np.ndarray:
    """Return the ids of the test images that lines name, in the order of the lines."""
    known: dict[str, list[int]] = {}
    for one in ids.tolist():
        name = found.images[one].name
        last = name.rpartition("/")[2]
        for spelled in {name, last, f"{found.class_names[found.labels[one]]}/{last}"}:
            known.setdefault(spelled, []).append(one)
    what = f"data.test_list {file}"
    missing = [line for line in lines if line not in known]
    if missing or not lines:
        shown = ", ".join(map(printable, missing[:SHOWN]))
        more = ", ..." if len(missing) > SHOWN else ""
        named = f"{len(missing)} that are not ({shown}{more})" if missing else "none"
        raise ValueError(
            f"{what} must name images of the test split as IMAGE or CLASS/IMAGE, one a line, "
            f"got {named}"
        )
    doubtful = [line for line in lines if len(known[line]) > 1]
    if doubtful:
        raise ValueError(
            f"{what}: {printable(doubtful[0])} is the name of {len(known[doubtful[0]])} images; "
            "write CLASS/IMAGE"
        )
    chosen = [known[line][0] for line in lines]
    seen = set[int]()
    for line, one in zip(lines, chosen, strict=True):
        if one in seen:
            raise ValueError(f"{what} must name each image once, got {printable(line)} again")
        seen.add(one)
    return np.array(chosen, dtype=np.int64)
