"""Decoding of images that strangers made: RGB pixels of one size, or the reason why not."""

from __future__ import annotations

import io
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

MISSING = "no such file"
NOT_A_FILE = "not a regular file"
MAX_FILE_BYTES = 1 << 29

# Raster formats only: PIL's other plugins run Ghostscript (EPS), follow references or are rarely tested.
Image.init()
_WANTED: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)


class UnreadableImage(ValueError):
    """A file that is there but yields no pixels; the message is the reason."""


@dataclass
class ImageReport:
    """How many images of a data set could not be used.

    Attributes:
        total: distinct images asked for.
        missing: those without a file.
        unreadable: those whose file is corrupt, too large or no image.
        first: path and reason of the first of either kind.
    """

    total: int = 0
    missing: int = 0
    unreadable: int = 0
    first: tuple[Path, str] | None = None

    def add(self, path: Path, problem: str | None) -> None:
        """Count one image; ``problem`` is None, :data:`MISSING` or why it is unreadable."""
        self.total += 1
        if problem is None:
            return
        if problem == MISSING:
            self.missing += 1
        else:
            self.unreadable += 1
        self.first = self.first or (path, problem)

    def summary(self) -> str:
        """One line such as "3 of 120 images unreadable, first: <path>: <reason>"; empty when all is well."""
        if self.first is None:
            return ""
        counts = [(self.missing, "missing"), (self.unreadable, "unreadable")]
        kinds = " and ".join(f"{count} of {self.total} images {kind}" for count, kind in counts if count)
        return f"{kinds}, first: {self.first[0]}: {self.first[1]}"


def read_image_file(path: Path) -> bytes:
    """The bytes of a regular file of at most 512 MiB.

    Raises:
        UnreadableImage: there is none, it is something else (a folder, a pipe), larger, or not permitted.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableImage(NOT_A_FILE)
        if found.st_size > MAX_FILE_BYTES:
            raise UnreadableImage(f"{found.st_size:,} bytes, more than {MAX_FILE_BYTES:,}")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UnreadableImage(MISSING) from None
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from None


def decode_image(data: bytes, size: int) -> NDArray[np.uint8]:
    """Decode an image file's bytes (spec section 1: Lanczos, aspect ratio not kept, EXIF orientation ignored).

    Transparent images are laid on white; 16-bit ones keep their upper 8 bits; of an animation the first frame counts.

    Returns:
        [size, size, 3] uint8 RGB.

    Raises:
        UnreadableImage: not a raster image, corrupt, truncated, or more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            refuse_bomb(image)
            resized = to_rgb(image).resize((size, size), Image.Resampling.LANCZOS)
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage("not an image of a known format" if data else "an empty file") from None
    except Exception as error:  # PIL's plugins meet broken files with almost any exception
        raise UnreadableImage(f"{type(error).__name__}: {error}") from None
    return np.asarray(resized)


def refuse_bomb(image: Image.Image) -> None:
    """Refuse before decoding what has more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels; PIL only warns up to twice that.

    Raises:
        UnreadableImage: it has.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise UnreadableImage(f"{image.width} x {image.height} pixels, more than {limit:,}")


def to_rgb(image: Image.Image) -> Image.Image:
    """Transparent images are laid on white; 16-bit ones keep their upper 8 bits. PIL may raise almost anything."""
    if image.mode.startswith("I"):  # 16-bit grey; PIL's own conversion clips at 255
        grey = np.clip(np.asarray(image.convert("I")), 0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        solid = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", solid.size, "white"), solid).convert("RGB")
    return image.convert("RGB")
