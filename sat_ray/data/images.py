"""Encoded images: where one lies, how it becomes an array of one size, and how it is stored."""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sat_ray.utils.import_string import first_line
from sat_ray.utils.names import printable

ENCODINGS = ("raw", "jpeg")
LARGEST_SIDE = 4096  # of stored images in pixels
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # of files, in PIL's words
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".webp", ".gif")
CHANNELS = {
    "1": 1,
    "L": 1,
    "LA": 1,
    "P": 3,
    "PA": 3,
    "RGB": 3,
    "RGBA": 3,
    "CMYK": 3,
    "YCbCr": 3,
}  # of PIL's 8-bit modes
MOST_PIXELS = 100_000_000  # of one file: 300 MB in memory; a small PNG may announce any number
LARGE_PIXELS = 16_000_000  # larger ones are decoded one at a time in every process
_ONE_LARGE = threading.Lock()


class CorruptImageError(ValueError):
    """The bytes of one image cannot be decoded."""


@dataclass(frozen=True)
class Storing:
    """How images are stored.

    image_size: the short side is resized to it and the centre is kept, so that all are (3,
    image_size, image_size); 0 leaves them as they are. resize: the short side is resized to this
    instead, before the centre is cut; 0: to image_size. encoding: "raw" uint8 or "jpeg" of this
    quality (1 to 95), about a tenth of the space for about 1 / 255 of error.
    """

    image_size: int = 0
    encoding: str = "raw"
    quality: int = 92
    resize: int = 0

    def pixels(self, image: Any) -> np.ndarray:
        """Return a decoded image, resized and cut, as (3, H, W) uint8; a gray one as (1, H, W)."""
        if self.image_size:
            image = fitted(image, self.image_size, resize=self.resize)
        pixels = np.asarray(image, dtype=np.uint8)
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def encode(self, pixels: np.ndarray) -> bytes:
        """Encode (3, H, W) uint8 as a JPEG without chroma subsampling.

        So an attack sees every colour at full resolution.
        """
        from PIL import Image

        sink = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(
            sink, format="JPEG", quality=self.quality, subsampling=0
        )
        return sink.getvalue()


def fitted(image: Any, side: int, *, resize: int = 0) -> Any:
    """Resize the short side of a PIL image to `resize`, or to `side`, and keep the centre.

    The centre is a square of `side`. The resizing is bilinear with antialiasing, as torchvision's
    Resize and CenterCrop do it.
    """
    from torchvision.transforms import functional

    return functional.center_crop(functional.resize(image, [resize or side]), [side])


@dataclass(frozen=True, slots=True)
class Header:
    """What an image file says about itself.

    channels: 1 for gray, 3 for colour; size: (width, height).
    """

    channels: int
    size: tuple[int, int]


def header(data: bytes) -> Header:
    """Read the header of an image file.

    Raises CorruptImageError for anything but one 8-bit image.
    """
    with _checked(data) as file:
        return Header(CHANNELS[file.mode], file.size)


def opened(data: bytes, *, channels: int = 3) -> Any:
    """Decode one image into a PIL image. Raises CorruptImageError for anything but one 8-bit image.

    channels: 1 for gray, 3 for RGB; the image is converted. Orientation tags are ignored, as
    ImageNet's usual readers do. This is the only decoder: what is trained on and what is evaluated
    are the same pixels.
    """
    with _checked(data) as file:
        width, height = file.size
        with _ONE_LARGE if width * height > LARGE_PIXELS else contextlib.nullcontext():
            try:
                return file.convert("L" if channels == 1 else "RGB")
            except Exception as error:  # PIL raises what its many readers raise
                raise CorruptImageError(_reason(error)) from None


@contextlib.contextmanager
def _checked(data: bytes) -> Iterator[Any]:
    """Open an image file without decoding it; it must be one 8-bit image."""
    from PIL import Image  # comes with torchvision

    try:
        # The limit below is lower than PIL's error. Images are opened in several threads at once,
        # and warnings.catch_warnings would put the filters of another thread back.
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        file = Image.open(io.BytesIO(data), formats=FORMATS)
        mode = file.mode
        width, height = file.size
        # MPO is a camera's JPEG with a preview behind it
        frames = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)
    except Exception as error:
        raise CorruptImageError(_reason(error)) from None
    with file:
        if mode not in CHANNELS:
            raise CorruptImageError(
                f"its pixels are of PIL mode {mode}, not 8-bit gray or colour; convert it to 8 bits"
            )
        if frames > 1:
            raise CorruptImageError(f"it has {frames} frames; an image has one")
        if width * height > MOST_PIXELS:
            raise CorruptImageError(
                f"it says that it is {width} x {height}; at most {MOST_PIXELS:,} pixels are decoded"
            )
        yield file


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return printable(first_line(error))


def decoded(data: bytes) -> np.ndarray:
    """Decode a stored JPEG into (3, H, W) uint8."""
    return Storing().pixels(opened(data))
