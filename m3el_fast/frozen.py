"""Tower outputs that are computed once and memory-mapped: what ``--freeze-encoder`` trains on."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from m3el_fast.data.tokenized import TokenizedSide
from m3el_fast.dataset import Dataset, SplitName
from m3el_fast.encode import Source
from m3el_fast.encoder import Encoder
from m3el_fast.errors import InputError
from m3el_fast.features import ImageOutputs, TextOutputs, TowerOutputs
from m3el_fast.files import replace_file
from m3el_fast.models import MELModel

_BLOCK = 128
_ARRAYS = ("text_global", "text_local", "image_global", "image_local")


def freeze(model: MELModel, data: Dataset, folder: Path, progress: bool = True) -> Dataset:
    """Freeze the towers of ``model`` and put their stored outputs in place of the raw inputs of ``data``.

    The projections behind the towers stay trainable. Stores are built in ``folder``, or reused if they fit.

    Raises:
        InputError: too little disk, or a tower output that fp16 cannot hold.
    """
    model.encoder.model.requires_grad_(False)
    fingerprint = _digest(model.encoder)

    def store(source: Source, name: str) -> TowerStore:
        assert isinstance(source, TokenizedSide)
        return TowerStore(model.encoder, source, folder / name, fingerprint, progress)

    sources: dict[SplitName, Source] = {name: store(split.source, name) for name, split in data.splits.items()}
    return data.with_sources(store(data.entities, "kb"), sources)


class TowerStore:
    """The tower outputs of one side, fp16 (relative error 5e-4), in ``folder``; a batch source like its ``source``.

    Text outputs have one row per item, image outputs one per distinct image. Building resumes after a kill.
    """

    def __init__(
        self, encoder: Encoder, source: TokenizedSide, folder: Path, fingerprint: str, progress: bool = True
    ) -> None:
        self.source, self.folder = source, folder
        self.distinct = source.distinct_images()
        self._arrays = self._open(encoder, fingerprint)
        self._fill(encoder.eval(), progress)

    @property
    def text_key(self) -> Tensor:
        return self.source.text_key

    @property
    def image_key(self) -> Tensor:
        return self.source.image_key

    def __len__(self) -> int:
        return len(self.source)

    def inputs(self, rows: Tensor, share: Tensor | None = None) -> TowerOutputs:
        """Tower outputs fp32 of the items ``rows`` [b] int64; ``share`` as in :meth:`TokenizedSide.inputs`."""
        used, index = self.source.image_rows(rows, share).unique(return_inverse=True)
        text, image = self.texts(rows), self.images(used)
        return TowerOutputs(text.text_global, text.text_local, *image, index, text.attention_mask)

    def texts(self, rows: Tensor) -> TextOutputs:
        """Tower outputs fp32 of the texts of the items ``rows`` [b] int64."""
        mask = self.source.attention_mask[rows].long()
        return TextOutputs(self._gather("text_global", rows), self._gather("text_local", rows), mask)

    def images(self, keys: Tensor) -> ImageOutputs:
        """Tower outputs fp32 of the images ``keys`` [u] int64, as in ``image_key``."""
        places = torch.searchsorted(self.distinct, keys)
        return ImageOutputs(self._gather("image_global", places), self._gather("image_local", places))

    def _gather(self, name: str, rows: Tensor) -> Tensor:
        return torch.from_numpy(self._arrays[name][rows.numpy()].astype(np.float32))

    # -- building ----------------------------------------------------------------------------------------------------

    def _open(self, encoder: Encoder, fingerprint: str) -> dict[str, NDArray[np.float16]]:
        """The mapped arrays; those of another encoder or other data are replaced."""
        self._identity = {"encoder": fingerprint, "data": _digest_data(self.source, self.distinct)}
        if self._state().items() >= self._identity.items():
            return {name: np.load(self.folder / f"{name}.npy", mmap_mode="r+") for name in _ARRAYS}
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        one = torch.zeros(1, dtype=torch.int64)
        shapes = [output.shape[1:] for output in self._text(encoder, one) + self._image(encoder, one)]
        counts = [len(self.source)] * 2 + [len(self.distinct)] * 2
        needed = sum(2 * count * math.prod(shape) for count, shape in zip(counts, shapes, strict=True))
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise InputError(self.folder, f"{needed / 1e9:.2f} GB free for tower outputs", f"{free / 1e9:.2f} GB")
        arrays: dict[str, NDArray[np.float16]] = {
            name: np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", np.float16, (count, *shape))
            for name, count, shape in zip(_ARRAYS, counts, shapes, strict=True)
        }
        self._write_state({"text": 0, "image": 0})
        return arrays

    @torch.inference_mode()
    def _fill(self, encoder: Encoder, progress: bool) -> None:
        done = self._state()
        for kind, total, compute, names in (
            ("text", len(self.source), self._text, _ARRAYS[:2]),
            ("image", len(self.distinct), self._image, _ARRAYS[2:]),
        ):
            start = int(done[kind])
            title = f"encoding {self.folder.name} {kind}s"
            with tqdm(total=total, initial=start, desc=title, unit=kind, disable=not progress, leave=False) as bar:
                for first in range(start, total, _BLOCK):
                    rows = torch.arange(first, min(first + _BLOCK, total))
                    for name, output in zip(names, compute(encoder, rows), strict=True):
                        self._write(name, rows, output)
                    done[kind] = int(rows[-1]) + 1
                    self._write_state({"text": int(done["text"]), "image": int(done["image"])})
                    bar.update(len(rows))

    def _write(self, name: str, rows: Tensor, output: Tensor) -> None:
        half = output.to(torch.float16).cpu()
        if not half.isfinite().all():
            raise InputError(f"{self.folder}, {name}", "finite values below 65,504", f"{float(output.abs().max()):.3g}")
        array = self._arrays[name]
        array[int(rows[0]) : int(rows[-1]) + 1] = half.numpy()
        assert isinstance(array, np.memmap)
        array.flush()

    def _text(self, encoder: Encoder, rows: Tensor) -> list[Tensor]:
        device = next(encoder.parameters()).device
        return list(encoder.model.text(*(tensor.to(device) for tensor in self.source.texts(rows))))

    def _image(self, encoder: Encoder, rows: Tensor) -> list[Tensor]:
        device = next(encoder.parameters()).device
        images = self.source.images(self.distinct[rows])
        pixel_values, index = encoder.pixel_values(*(tensor.to(device) for tensor in images))
        return [output[index] for output in encoder.model.image(pixel_values)]

    def _state(self) -> dict[str, str | int]:
        path = self.folder / "state.json"
        state: dict[str, str | int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return state

    def _write_state(self, done: dict[str, int]) -> None:
        with replace_file(self.folder / "state.json") as temporary:
            temporary.write_text(json.dumps(self._identity | done), encoding="utf-8")


def _digest(encoder: Encoder) -> str:
    digest = hashlib.sha256()
    tensors = encoder.model.state_dict() | {"mean": encoder.normalise.mean, "std": encoder.normalise.std}
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _digest_data(source: TokenizedSide, images: Tensor) -> str:
    digest = hashlib.sha256(source.input_ids.numpy().tobytes() + images.numpy().tobytes())
    for rows in images[images >= 0].split(_BLOCK):
        digest.update(source.cache.pixels(rows).numpy().tobytes())
    return digest.hexdigest()
