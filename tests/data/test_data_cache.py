import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from m3el_fast.data import cache_store as module
from m3el_fast.data.cache import ImageCache
from m3el_fast.data.images import decode_image
from m3el_fast.errors import InputError

SIZE = 16
HOME = f"v1-{SIZE}px"


def build(paths: Sequence[Path], folder: Path, *, strict: bool = False, size: int = SIZE) -> ImageCache:
    return ImageCache.build(paths, size, folder, strict=strict, workers=2, progress=False)


def write_images(folder: Path, count: int, first: int = 0) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i}.png" for i in range(first, first + count)]
    for i, path in enumerate(paths, start=first):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    return paths


def check(cache: ImageCache, paths: Sequence[Path], size: int = SIZE) -> None:
    got = cache.pixels(torch.tensor([cache.row(path) for path in paths]))
    assert got.dtype == torch.uint8
    np.testing.assert_array_equal(got.numpy(), np.stack([decode_image(path.read_bytes(), size) for path in paths]))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One item for each image that the cache decodes."""
    calls: list[int] = []

    def counted(data: bytes, size: int) -> Any:
        calls.append(size)
        return decode_image(data, size)

    monkeypatch.setattr(module, "decode_image", counted)
    return calls


def test_pixels_of_every_image(tmp_path: Path, decoded: list[int]) -> None:
    paths = write_images(tmp_path / "images", 7)
    cache = build([*paths, *paths], tmp_path / "cache")
    check(cache, paths[::-1])
    assert len(decoded) == 7
    assert cache.report.total == 7
    assert cache.report.summary() == ""
    assert cache.row(None) == -1
    assert cache.pixels(torch.tensor([], dtype=torch.int64)).shape == (0, SIZE, SIZE, 3)
    with pytest.raises(KeyError):
        cache.row(tmp_path / "never asked for")
    for rows in ([-1], [0, 7]):
        with pytest.raises(ValueError, match="expected rows from 0 to 6, got"):
            cache.pixels(torch.tensor(rows))


def test_names_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, folder in enumerate((tmp_path / "a", tmp_path / "b")):
        (file,) = write_images(folder, 1, number)
        file.rename(folder / "photo.png")
        monkeypatch.chdir(folder)
        check(build([Path("photo.png")], tmp_path / "cache"), [Path("photo.png")])


def test_no_images(tmp_path: Path) -> None:
    cache = build([], tmp_path / "cache")
    assert cache.pixels(torch.tensor([], dtype=torch.int64)).shape == (0, SIZE, SIZE, 3)
    assert not (tmp_path / "cache").exists()


def test_sizes_do_not_mix(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 2)
    small, large = build(paths, tmp_path / "cache"), build(paths, tmp_path / "cache", size=24)
    check(small, paths)
    check(large, paths, 24)


def test_equal_files_share_a_row(tmp_path: Path, decoded: list[int]) -> None:
    (path,) = write_images(tmp_path / "images", 1)
    build([path], tmp_path / "cache")
    copies = [Path(shutil.copy(path, tmp_path / f"copy{i}.png")) for i in range(3)]
    cache = build([path, *copies], tmp_path / "cache")
    assert {cache.row(item) for item in (path, *copies)} == {0}
    assert len(decoded) == 1


def test_equal_files_decoded_together_share_a_row(tmp_path: Path) -> None:
    first, other = write_images(tmp_path / "images", 2)
    copy = Path(shutil.copy(first, tmp_path / "copy.png"))
    cache = build([first, copy, other], tmp_path / "cache")
    assert cache.row(first) == cache.row(copy) != cache.row(other)
    check(cache, [first, copy, other])


def test_second_build_decodes_only_what_is_new(tmp_path: Path, decoded: list[int], monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_CHUNK", 2)
    paths = write_images(tmp_path / "images", 5)
    first = build(paths[:3], tmp_path / "cache")
    rows = [first.row(path) for path in paths[:3]]
    second = build(paths, tmp_path / "cache")
    assert len(decoded) == 5
    assert [second.row(path) for path in paths[:3]] == rows
    check(first, paths[:3])
    check(second, paths)


@pytest.mark.parametrize("asked", [1, 2, 5, 500])
def test_files_are_looked_up_in_several_queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int) -> None:
    paths = write_images(tmp_path / "images", 5)
    build(paths, tmp_path / "cache")
    monkeypatch.setattr(module, "_ASKED", asked)
    monkeypatch.setattr(module, "read_image_file", None)
    check(build(paths[::-1], tmp_path / "cache"), paths)


@pytest.mark.parametrize("new", [False, True], ids=["known", "new"])
def test_opening_reads_as_much_of_a_large_index_as_of_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bool
) -> None:
    steps, connect = [0], sqlite3.connect

    def counted(*args: Any, **options: Any) -> sqlite3.Connection:
        index = connect(*args, **options)
        index.set_progress_handler(lambda: steps.__setitem__(0, steps[0] + 1), 1)
        return index

    paths, counts = write_images(tmp_path / "images", 60), []
    monkeypatch.setattr(module.sqlite3, "connect", counted)
    for size, last in ((5, 10), (55, 60)):
        build(paths[:size], tmp_path / "cache")
        steps[0] = 0
        build([paths[last - 1 if new else 0]], tmp_path / "cache")
        counts.append(steps[0])
    assert counts[0] == counts[1] > 0


def test_reopening_reads_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [*write_images(tmp_path / "images", 3), tmp_path / "images" / "text.jpg"]
    paths[-1].write_text("no image")
    build(paths, tmp_path / "cache")
    monkeypatch.setattr(module, "read_image_file", None)
    cache = build(paths, tmp_path / "cache")
    check(cache, paths[:3])
    assert cache.report.unreadable == 1
    assert cache.row(paths[-1]) == -1


def test_data_and_cache_moved_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    build(write_images(old / "images", 3), old / "cache")
    old.rename(new)
    monkeypatch.setattr(module, "read_image_file", None)
    paths = [new / "images" / f"{i}.png" for i in range(3)]
    check(build(paths, new / "cache"), paths)


@pytest.mark.parametrize("change", ["size", "time"])
def test_changed_file_is_decoded_anew(tmp_path: Path, change: str) -> None:
    path, other = write_images(tmp_path / "images", 2)
    length = max(path.stat().st_size, other.stat().st_size)
    path.write_bytes(path.read_bytes().ljust(length, b"\n"))
    found = path.stat()
    build([path], tmp_path / "cache")
    path.write_bytes(other.read_bytes().ljust(length + (change == "size"), b"\n"))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + (change == "time")))
    check(build([path], tmp_path / "cache"), [path])


def test_unusable_images_are_counted(tmp_path: Path, png_header: Callable[[int, int], bytes]) -> None:
    paths = write_images(tmp_path / "images", 2)
    names = ("text.jpg", "bomb.png", "large.png", "gone.jpg", "folder")
    text, bomb, large, gone, folder = (tmp_path / name for name in names)
    text.write_text("no image")
    bomb.write_bytes(png_header(30_000, 30_000))
    large.write_bytes(png_header(10_000, 10_000))
    folder.mkdir()
    cache = build([paths[0], text, bomb, large, gone, folder, paths[1]], tmp_path / "cache")
    check(cache, paths)
    assert [cache.row(path) for path in (text, bomb, large, gone, folder)] == [-1] * 5
    assert (cache.report.total, cache.report.missing, cache.report.unreadable) == (7, 1, 4)
    assert cache.report.summary() == (
        f"1 of 7 images missing and 4 of 7 images unreadable, first: {text}: not an image of a known format"
    )


@pytest.mark.parametrize("known", [False, True], ids=["new", "seen before"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no image", "not an image of a known format"), (None, "no such file")],
    ids=["unreadable", "missing"],
)
def test_strict(tmp_path: Path, content: bytes | None, reason: str, known: bool) -> None:
    paths = [*write_images(tmp_path / "images", 1), tmp_path / "bad.jpg"]
    if content is not None:
        paths[1].write_bytes(content)
    if known:
        build(paths, tmp_path / "cache")
    with pytest.raises(InputError) as error:
        build(paths, tmp_path / "cache", strict=True)
    assert str(error.value).startswith(f"{paths[1]}: expected a readable image, got {reason}")
    check(build(paths[:1], tmp_path / "cache", strict=True), paths[:1])


def test_too_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20_000_000))
    paths = write_images(tmp_path / "images", 3)
    with pytest.raises(InputError) as error:
        build(paths, tmp_path / "cache", size=2000)
    assert str(error.value) == (
        f"{tmp_path / 'cache' / 'v1-2000px'}: expected 0.04 GB free for 3 images of 2000 x 2000 pixels, got 0.02 GB. "
        "Free some, or put the cache on another disk"
    )
    assert not (tmp_path / "cache").exists()


def test_damaged_cache(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 3)
    home = tmp_path / "cache" / HOME
    build(paths, tmp_path / "cache")
    with open(home / "pixels", "r+b") as pixels:
        pixels.truncate(SIZE * SIZE * 3)
    for wanted in (paths, [*paths, *write_images(tmp_path / "images", 1, first=3)]):
        with pytest.raises(InputError, match=r"at least 2,304 bytes, the 3 images of its index, got 768\. Remove the"):
            build(wanted, tmp_path / "cache")
    (home / "index.sqlite").write_text("something else" * 100)
    with pytest.raises(InputError, match=r"index.sqlite: expected the index of an image cache, got file is not"):
        build(paths, tmp_path / "cache")


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(InputError, match=r"that can be written, got Permission denied\. The .* M3EL_CACHE puts it"):
        build(write_images(tmp_path / "images", 1), tmp_path / "cache")


def test_file_in_place_of_the_folder(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 1)
    (tmp_path / "cache").write_text("x")
    with pytest.raises(InputError, match="expected a folder for the image cache, got a file in its place"):
        build(paths, tmp_path / "cache")


def python(code: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_goes_on_after_a_kill(tmp_path: Path, decoded: list[int]) -> None:
    paths = write_images(tmp_path / "images", 11)
    killed = python(
        """
        import os, sys
        from pathlib import Path
        from m3el_fast.data import cache_store
        from m3el_fast.data.cache import ImageCache
        cache_store._CHUNK = 4
        decode = cache_store.decode_image
        calls = []
        def until_killed(data, size):
            calls.append(1)
            return decode(data, size) if len(calls) < 11 else os.kill(os.getpid(), 9)
        cache_store.decode_image = until_killed
        paths = [Path(name) for name in sys.argv[2:]]
        ImageCache.build(paths, 16, Path(sys.argv[1]), strict=False, workers=1, progress=False)
        """,
        tmp_path / "cache",
        *paths,
    )
    assert killed.communicate() == ("", "")
    assert killed.returncode == -9
    check(build(paths, tmp_path / "cache"), paths)
    assert len(decoded) == 3  # two chunks of four were finished


def test_pixels_that_no_index_names_are_written_over(tmp_path: Path) -> None:
    """A build that was killed before its commit has left them: a row, and a part of the next."""
    paths = write_images(tmp_path / "images", 3)
    build(paths[:2], tmp_path / "cache")
    with (tmp_path / "cache" / HOME / "pixels").open("ab") as pixels:
        pixels.write(b"\xff" * 1000)
    check(build(paths, tmp_path / "cache"), paths)


def test_two_processes_at_once(tmp_path: Path) -> None:
    """Both find that every image is new before either starts: one then reads them all, the other none."""
    paths = write_images(tmp_path / "images", 40)
    code = """
        import sys, time
        from pathlib import Path
        from m3el_fast.data import cache_store
        from m3el_fast.data.cache import ImageCache
        folder, mine, other, *names = sys.argv[1:]
        cache_store._CHUNK = 3
        reads = []
        read = cache_store.read_image_file
        def counted(path):
            reads.append(path)
            return read(path)
        def meet(store, images):
            Path(mine).touch()
            while not Path(other).exists():
                time.sleep(0.001)
        cache_store.read_image_file, cache_store.Store.require_space = counted, meet
        paths = [Path(name) for name in names]
        built = ImageCache.build(paths, 16, Path(folder), strict=False, workers=2, progress=False)
        assert sorted(built.row(path) for path in paths) == list(range(len(paths)))
        print(len(reads))
        """
    a, b = tmp_path / "a", tmp_path / "b"
    first = python(code, tmp_path / "cache", a, b, *paths)
    second = python(code, tmp_path / "cache", b, a, *paths[::-1])
    assert sorted([first.communicate(), second.communicate()]) == [("0\n", ""), ("40\n", "")]
    check(build(paths, tmp_path / "cache"), paths)
    assert (tmp_path / "cache" / HOME / "pixels").stat().st_size == 40 * SIZE * SIZE * 3
