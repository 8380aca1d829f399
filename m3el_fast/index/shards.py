"""Safetensors files that are written in any order of rows, and read through a memory map.

The data of a file starts on a page and each tensor on a cache line: the JSON header is padded with spaces, and tensors
of bytes (``pad.N``) fill the gaps, which the format does not allow.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import mmap
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from m3el_fast.errors import InputError

PAGE = 4096
_LINE = 64  # bytes of a cache line
_CHUNK = 1 << 22

Spec = tuple[torch.dtype, tuple[int, ...]]
"""The type and shape of a tensor."""

DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

with warnings.catch_warnings():
    # torch warns once a process of memory that is not writable, as mapped files are. Have it over with: while files are
    # opened, there may be threads, and filters are not for one of them.
    warnings.simplefilter("ignore")
    torch.frombuffer(b"\0", dtype=torch.uint8)


def spec_bytes(spec: Spec) -> int:
    dtype, shape = spec
    return math.prod(shape) * dtype.itemsize


def _plan(specs: Mapping[str, Spec]) -> tuple[bytes, dict[str, int], int]:
    """The file's first bytes (length and header), the offset of each tensor in the file, the file's size."""
    entries: dict[str, object] = {}
    starts: dict[str, int] = {}
    end = 0
    for name, (dtype, shape) in specs.items():
        if end % _LINE:
            gap = _LINE - end % _LINE
            entries[f"pad.{len(entries)}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [end, end + gap]}
            end += gap
        starts[name] = end
        end += spec_bytes((dtype, shape))
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [starts[name], end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(len(header) + 8) % PAGE)
    first = len(header) + 8
    offsets = {name: first + start for name, start in starts.items()}
    return len(header).to_bytes(8, "little") + header, offsets, first + end


def shard_bytes(specs: Mapping[str, Spec]) -> int:
    """Size in bytes of a file of such tensors."""
    return _plan(specs)[2]


class ShardWriter:
    """A file of tensors, allocated whole and then filled; rows that were never written are zero.

    Writes go through the file descriptor, not through a map: a disk that fills up is an error and not a signal, and
    pages written do not count as the process's memory.

    Args:
        path: created, or with ``resume`` opened as it is.

    Raises:
        InputError: with ``resume``, the file there is not one of such tensors.
        OSError: the disk is full, or any other failure.
    """

    def __init__(self, path: Path, specs: Mapping[str, Spec], resume: bool = False) -> None:
        self.path, self.specs = path, dict(specs)
        head, self._offsets, size = _plan(specs)
        self._file = os.open(path, os.O_RDWR | (0 if resume else os.O_CREAT | os.O_TRUNC), 0o644)
        try:
            if resume:
                if os.fstat(self._file).st_size != size or os.pread(self._file, len(head), 0) != head:
                    raise InputError(path, "a file that this build began", "another one", "Remove its folder")
            else:
                _allocate(self._file, size)
                _write(self._file, head, 0)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def put(self, name: str, rows: Tensor, values: Tensor) -> None:
        """Write ``values`` [n, ...] as the rows ``rows`` [n] int64 of a tensor; consecutive rows cost one write.

        Raises:
            ValueError: type or shape are not those of the tensor, or a row is outside it.
        """
        dtype, shape = self.specs[name]
        if values.dtype != dtype or values.shape != (len(rows), *shape[1:]):
            expected, got = f"{dtype} [{len(rows)}, {_commas(shape[1:])}]", f"{values.dtype} [{_commas(values.shape)}]"
            raise ValueError(f"{name}: expected {expected}, got {got}")
        if not len(rows):
            return
        if not 0 <= int(rows.min()) <= int(rows.max()) < shape[0]:
            raise ValueError(f"{name}: expected rows from 0 to {shape[0] - 1}, got {rows.min()} to {rows.max()}")
        data = raw_bytes(values)
        width = spec_bytes((dtype, shape[1:]))
        breaks = (rows.diff() != 1).nonzero()[:, 0] + 1
        runs = [0, *breaks.tolist(), len(rows)]
        starts = rows[runs[:-1]].tolist()
        for row, first, last in zip(starts, runs[:-1], runs[1:], strict=True):
            _write(self._file, data[first * width : last * width], self._offsets[name] + row * width)

    def put_all(self, name: str, values: Tensor) -> None:
        """Write the whole of a tensor."""
        self.put(name, torch.arange(len(values)), values)

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        os.fsync(self._file)


class Shard:
    """A file of tensors, memory-mapped read-only: writing into one of its tensors ends the process.

    Attributes:
        tensors: by name, without padding. They stay valid when the file is removed.

    Raises:
        InputError: the file is missing, truncated or something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise InputError(path, "a file of tensors", "no such file") from None
        except (OSError, ValueError) as error:  # mmap's ValueError: the file is empty
            raise InputError(path, "a readable file of tensors", error) from None
        length = int.from_bytes(memory[:8], "little")
        try:
            entries = json.loads(memory[8 : 8 + length].decode())
            self.tensors = {
                name: _tensor(memory, DTYPES[entry["dtype"]], entry["shape"], 8 + length + entry["data_offsets"][0])
                for name, entry in entries.items()
                if not name.startswith("pad.")
            }
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise InputError(path, "a whole file of tensors", error) from None


def _tensor(memory: mmap.mmap, dtype: torch.dtype, shape: list[int], offset: int) -> Tensor:
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(shape)


def raw_bytes(values: Tensor) -> memoryview:
    """The bytes of a CPU tensor of any type; no copy where it is contiguous."""
    values = values.detach().contiguous()
    # a tensor with one element is contiguous whatever its strides
    return values.as_strided((values.numel(),), (1,)).view(torch.uint8).numpy().data


def file_digest(path: Path) -> str:
    """BLAKE2b-256 of a file's bytes, as hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=32)
    with path.open("rb", buffering=0) as file:
        buffer = np.empty(_CHUNK, np.uint8)
        while count := file.readinto(buffer.data):
            digest.update(buffer[:count].data)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _allocate(file: int, size: int) -> None:
    """Reserve the space now, where the file system can."""
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(file, size)


def _write(file: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:  # one call writes at most 2 GB
        count = os.pwrite(file, view, offset)
        view, offset = view[count:], offset + count


def _commas(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
