"""m3el_fast/data/thumbnails.py: small pictures of any image, and nothing else of the file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m3el_fast.data.images import UnreadableImage
from m3el_fast.data.thumbnails import thumbnail

NOISE = np.random.default_rng(0).integers(0, 2, (90, 60, 1), dtype=np.uint8).repeat(3, axis=2) * 255  # the worst case


@pytest.mark.parametrize(
    ("size", "expected"), [((300, 200), (40, 27)), ((3, 900), (1, 40)), ((900, 3), (40, 1)), ((8, 5), (8, 5))], ids=str
)
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_size_and_colours(size: tuple[int, int], expected: tuple[int, int], format: str, tmp_path: Path) -> None:
    Image.new("RGB", size, (200, 40, 90)).save(tmp_path / "image", format)
    with Image.open(io.BytesIO(thumbnail(tmp_path / "image", 40, 2000))) as found:
        assert (found.format, found.size, found.mode) == ("JPEG", expected, "RGB")
        assert found.getpixel((0, 0)) == pytest.approx((200, 40, 90), abs=8)


def test_a_picture_is_made_coarser_only_where_it_has_more_bytes(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "noise.png")
    sizes = [len(thumbnail(tmp_path / "noise.png", 90, limit)) for limit in (20_000, 3000, 90 * 90 // 3, 0)]
    assert sizes[0] > 3000 >= sizes[1] > 90 * 90 // 3 >= sizes[2] == sizes[3] > 0


@pytest.mark.parametrize("format", ["JPEG", "GIF", "PNG"])
def test_only_the_picture_is_taken_over(format: str, tmp_path: Path) -> None:
    """Neither comments, which may be longer than a JPEG's can be, nor where the photograph was taken."""
    picture, exif = Image.fromarray(NOISE[:8, :8]), Image.Exif()
    exif[270] = "secret"
    options = {"comment": b"secret" * 10_000, "exif": exif.tobytes(), "icc_profile": b"secret" * 100}
    if format == "GIF":
        options["comment"] = b"secret" * 12_000
    picture.save(tmp_path / "image", format, **options)
    assert b"secret" in (tmp_path / "image").read_bytes()
    found = thumbnail(tmp_path / "image", 40, 2000)
    assert b"secret" not in found and len(found) < 2000


def test_unreadable(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    for name in ("half.png", "text.jpg", "empty.jpg", "none.jpg", "."):
        with pytest.raises(UnreadableImage):
            thumbnail(tmp_path / name, 40, 2000)
