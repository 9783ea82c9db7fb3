"""A split in memory: uint8 images, labels and stable image ids."""

from dataclasses import dataclass

from torch import Tensor

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """images: (N, C, H, W) uint8; labels: (N,) int64; image_ids: (N,) int64, the index in the source's official order."""

    images: Tensor
    labels: Tensor
    image_ids: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor | slice) -> "Split":
        """Keep these rows."""
        return Split(self.images[rows], self.labels[rows], self.image_ids[rows])
