import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m3el_fast.data import images
from m3el_fast.data.images import ImageReport, UnreadableImage, decode_image, read_image_file


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def noise(height: int, width: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_lanczos_without_keeping_the_aspect_ratio(form: str) -> None:
    image = Image.fromarray(noise(37, 90, 3))
    expected = np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS))
    decoded = decode_image(encoded(image, form), 32)
    assert decoded.dtype == np.uint8
    assert decoded.shape == (32, 32, 3)
    np.testing.assert_array_equal(decoded, expected)


def test_exif_orientation_is_ignored() -> None:
    image = Image.fromarray(noise(32, 32, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = encoded(image, "JPEG", exif=exif), encoded(image, "JPEG")
    assert turned != plain
    np.testing.assert_array_equal(decode_image(turned, 32), decode_image(plain, 32))


RED = (200, 30, 40)
MODES = {
    "grey": (Image.new("L", (8, 8), 77), (77, 77, 77)),
    "grey with alpha": (Image.new("LA", (8, 8), (77, 255)), (77, 77, 77)),
    "one bit": (Image.new("1", (8, 8), 1), (255, 255, 255)),
    "palette": (Image.new("RGB", (8, 8), RED).quantize(4), RED),
    "opaque alpha": (Image.new("RGBA", (8, 8), (*RED, 255)), RED),
    "transparent": (Image.new("RGBA", (8, 8), (*RED, 0)), (255, 255, 255)),
    "16 bit": (Image.fromarray(np.full((8, 8), 77 * 256 + 5, np.uint16)), (77, 77, 77)),
}


@pytest.mark.parametrize(("image", "colour"), MODES.values(), ids=MODES)
def test_every_mode_becomes_rgb(image: Image.Image, colour: tuple[int, int, int]) -> None:
    np.testing.assert_array_equal(decode_image(encoded(image), 4), np.broadcast_to(colour, (4, 4, 3)))


def test_transparent_palette() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*RED, 0, 0, 0])
    np.testing.assert_array_equal(decode_image(encoded(image, transparency=0), 4), np.full((4, 4, 3), 255))


def test_cmyk() -> None:
    cmyk = Image.new("RGB", (8, 8), RED).convert("CMYK")
    decoded = decode_image(encoded(cmyk, "JPEG", quality=100), 4)
    np.testing.assert_allclose(decoded, np.broadcast_to(RED, (4, 4, 3)), atol=3)


PHOTO = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
DRAWING = encoded(Image.fromarray(noise(64, 64, 3)))
BROKEN = {
    "empty": (b"", "an empty file"),
    "text": (b"<html>404 Not Found</html>", "not an image of a known format"),
    "svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "not an image of a known format"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
    "truncated jpeg": (PHOTO[: len(PHOTO) // 2], "OSError: .*truncated"),
    "truncated png": (DRAWING[: len(DRAWING) // 2], "OSError: .*truncated"),
    "header only": (PHOTO[:3], "not an image of a known format"),
    "corrupt png": (DRAWING[:60] + bytes(200) + DRAWING[260:], "SyntaxError: broken PNG file|OSError"),
}


@pytest.mark.parametrize(("data", "reason"), BROKEN.values(), ids=BROKEN)
def test_broken_image(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=f"^(?:{reason})"):
        decode_image(data, 32)


def test_decompression_bomb(png_header: Callable[[int, int], bytes]) -> None:
    with pytest.raises(UnreadableImage, match=r"^DecompressionBombError: Image size \(900000000 pixels\)"):
        decode_image(png_header(30_000, 30_000), 32)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_size_at_which_pil_only_warns(png_header: Callable[[int, int], bytes]) -> None:
    with pytest.raises(UnreadableImage, match=r"^10000 x 10000 pixels, more than 89,478,485$"):
        decode_image(png_header(10_000, 10_000), 32)


def test_reading_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"12345")
    assert read_image_file(path) == b"12345"
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 4)
    for bad, reason in (
        (path, "^5 bytes, more than 4$"),
        (tmp_path, "^not a regular file$"),
        (tmp_path / "b.jpg", "^no such file$"),
        (path / "c.jpg", "^no such file$"),
        (tmp_path / ("x" * 300), "^File name too long$"),
    ):
        with pytest.raises(UnreadableImage, match=reason):
            read_image_file(bad)


def test_report() -> None:
    report = ImageReport()
    for i in range(115):
        report.add(Path(f"{i}.jpg"), None)
    assert report.summary() == ""
    report.add(Path("a.jpg"), "broken")
    report.add(Path("b.jpg"), "an empty file")
    assert report.summary() == "2 of 117 images unreadable, first: a.jpg: broken"
    report.add(Path("c.jpg"), "no such file")
    assert report.summary() == "1 of 118 images missing and 2 of 118 images unreadable, first: a.jpg: broken"
    assert (report.total, report.missing, report.unreadable) == (118, 1, 2)
