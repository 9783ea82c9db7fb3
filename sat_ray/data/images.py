"""Encoded images: where one lies, how it becomes an array of one size, and how it is stored."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from sat_ray.data.remote import read_range

ENCODINGS = ("raw", "jpeg")
LARGEST_SIDE = 4096  # of images in pixels: a shard of such images has 13 GB


class CorruptImageError(ValueError):
    """The bytes of one image cannot be decoded."""


@dataclass(frozen=True, slots=True)  # there may be a million
class Place:
    """The bytes of one image: all of a file, or `length` of them from `offset` inside an archive.

    name: what people call it; path: of the file, absolute or on S3.
    """

    name: str
    path: str
    offset: int = 0
    length: int = -1

    def read(self) -> bytes:
        """Return the bytes."""
        return read_range(self.path, self.offset, self.length)


@dataclass(frozen=True)
class Storing:
    """How images are stored.

    image_size: the short side is resized to it and the centre is kept, so that all are (3, image_size, image_size); 0 leaves them as
    they are. encoding: "raw" uint8 or "jpeg" of this quality (1 to 95), about a tenth of the space for about 1 / 255 of error.
    """

    image_size: int = 0
    encoding: str = "raw"
    quality: int = 92

    def pixels(self, image: Any) -> np.ndarray:
        """Return a decoded image, resized and cut, as (3, H, W) uint8."""
        if self.image_size:
            image = fitted(image, self.image_size)
        return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))

    def encode(self, pixels: np.ndarray) -> bytes:
        """Spell (3, H, W) uint8 as a JPEG without chroma subsampling: an attack sees every colour at full resolution."""
        from PIL import Image

        sink = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(sink, format="JPEG", quality=self.quality, subsampling=0)
        return sink.getvalue()


def fitted(image: Any, side: int) -> Any:
    """Resize the short side of a PIL image, bilinearly with antialiasing, and keep the centre: a square."""
    from torchvision.transforms import functional

    return functional.center_crop(functional.resize(image, [side]), [side])


def opened(data: bytes) -> Any:
    """Decode one image into a PIL image, RGB whatever it was. Raises CorruptImageError.

    Orientation tags are ignored, as ImageNet's usual readers do.
    """
    from PIL import Image  # comes with torchvision

    try:
        with Image.open(io.BytesIO(data)) as file:
            return file.convert("RGB")
    except Exception as error:  # PIL raises what its many readers raise
        raise CorruptImageError((str(error) or type(error).__name__).splitlines()[0]) from None


def decoded(data: bytes) -> np.ndarray:
    """Decode a stored JPEG into (3, H, W) uint8."""
    return Storing().pixels(opened(data))
