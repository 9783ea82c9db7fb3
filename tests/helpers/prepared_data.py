"""Prepare images from elsewhere in one step, as an evaluation does in two."""

from typing import Any

from sat_ray.data.shards.convert import open_data, written
from sat_ray.storage.store import Storage


def prepared(uri: str, root: Storage, **given: Any) -> str:
    """Return the folder of the prepared dataset that `uri` is or becomes, see `open_data`."""
    return written(open_data(uri, **given), root)
