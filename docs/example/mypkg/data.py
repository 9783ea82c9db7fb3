"""A dataset of my own: which of scikit-learn's two sample photographs is a patch from?"""

import numpy as np
from sklearn.datasets import load_sample_image

SIDE = 16


# --8<-- [start:flowers]
def flowers() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return images (N, 3, 16, 16) uint8, labels (N,) and the names of the classes."""
    patches = [_patches(load_sample_image(f"{name}.jpg")) for name in ("china", "flower")]
    labels = np.repeat([0, 1], [len(part) for part in patches])
    return np.concatenate(patches), labels, ("temple", "flower")


# --8<-- [end:flowers]


def _patches(photo: np.ndarray) -> np.ndarray:
    rows, columns = (length // SIDE for length in photo.shape[:2])
    squares = photo[: rows * SIDE, : columns * SIDE].reshape(rows, SIDE, columns, SIDE, 3)
    return np.ascontiguousarray(squares.transpose(0, 2, 4, 1, 3).reshape(-1, 3, SIDE, SIDE))
