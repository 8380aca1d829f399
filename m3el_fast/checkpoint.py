"""A checkpoint and the index that travels with it: saved in a folder, sent to the Hugging Face Hub."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from m3el_fast.calibration import CALIBRATION_FILE
from m3el_fast.config import RunConfig
from m3el_fast.encoder.encoder import ARCHITECTURE_FILE
from m3el_fast.errors import InputError
from m3el_fast.files import replace_folder
from m3el_fast.hub_card import edited, make_card, published, published_towers
from m3el_fast.hub_results import RESULTS_FILE
from m3el_fast.hub_transfer import CARD_FILE, INDEX_FOLDER, Repository
from m3el_fast.index import EntityIndex
from m3el_fast.index.fingerprint import fingerprint
from m3el_fast.index.folder import disk_errors
from m3el_fast.index.manifest import MANIFEST
from m3el_fast.models import CONFIG_FILE, WEIGHTS_FILE, MELModel, read_card

Metadata = Mapping[str, Any]


def save(model: MELModel, target: Path, index: EntityIndex | str | Path | None, metadata: Metadata | None) -> None:
    """Write the checkpoint folder, as :meth:`MELModel.save_pretrained`."""
    if target.exists() and not (target / CONFIG_FILE).exists() and not _is_empty_folder(target):
        got = "a folder of other files" if target.is_dir() else "a file"
        raise InputError(target, "a new folder or a checkpoint to replace", got)
    if Path.cwd().is_relative_to(target.resolve()):
        raise InputError(target, "a folder to replace", "the one that this process works in")
    carried = _kept_index(model, target) if index is None else given_index(model, index)
    card = edited(read_card(target)) or model.card
    with replace_folder(target) as folder:
        _write(model, folder, model.config, target.name, carried, _link_or_copy, card, metadata)


def push(
    model: MELModel,
    name: str,
    index: EntityIndex | str | Path | None,
    metadata: Metadata | None,
    *,
    private: bool | None,
    token: str | None,
    branch: str | None,
    message: str,
) -> str:
    """Send the checkpoint to the repository ``name``, as :meth:`MELModel.push_to_hub`."""
    carried = None if index is None else given_index(model, index)
    repository = Repository(name, private, token, branch)
    card = model.card or edited(repository.card())
    with tempfile.TemporaryDirectory() as place:
        stage(model, Path(place), repository.name, carried, card, metadata)
        return repository.upload(Path(place), message, (RESULTS_FILE, CALIBRATION_FILE))


def stage(
    model: MELModel,
    folder: Path,
    name: str,
    index: EntityIndex | None,
    card: bytes | None,
    metadata: Metadata | None,
) -> None:
    """Write what :func:`push` sends to the repository ``name`` into an empty folder, index files as symbolic links.

    ``card``: an edited one, None = generate it.
    """
    _write(model, folder, published(model.config), name, index, _symlink, card, metadata)
    towers = folder / ARCHITECTURE_FILE
    towers.write_text(published_towers(towers.read_text(encoding="utf-8")), encoding="utf-8")


def index_of(checkpoint: Path) -> Path | None:
    """The index that comes with a checkpoint folder, None = it comes without."""
    folder = checkpoint / INDEX_FOLDER
    return folder if (folder / MANIFEST).is_file() else None


def given_index(model: MELModel, index: EntityIndex | str | Path) -> EntityIndex:
    """The index that is to travel. Raises InputError where it is none, or was built with other weights."""
    if isinstance(index, EntityIndex):
        index.check(model)
        return index
    return EntityIndex.open(index, model)


def _kept_index(model: MELModel, checkpoint: Path) -> EntityIndex | None:
    """The index in a checkpoint folder that is to be replaced, where it is one of ``model``'s weights."""
    folder = index_of(checkpoint)
    index = None if folder is None else EntityIndex.open(folder)
    return index if index is not None and index.manifest.fingerprint == fingerprint(model) else None


def _write(
    model: MELModel,
    folder: Path,
    config: RunConfig,
    name: str,
    index: EntityIndex | None,
    place: Callable[[Path, Path], object],
    card: bytes | None,
    metadata: Metadata | None,
) -> None:
    if card is None:
        entities = None if index is None else len(index)
        made = make_card(model.config, name=name, results=model.results, entities=entities, metadata=metadata or {})
        card = str(made).encode()
    elif metadata:
        hint = f"State {', '.join(metadata)} in it, or remove it"
        raise InputError(CARD_FILE, "a card that metadata can be written into", "one that was edited", hint)
    (folder / CARD_FILE).write_bytes(card)
    (folder / CONFIG_FILE).write_text(config.dump(), encoding="utf-8")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    model.encoder.save_architecture(folder)
    if model.results is not None:
        model.results.write(folder)
    if model.calibration is not None:
        model.calibration.write(folder)
    if index is not None:
        _put_index(index, folder / INDEX_FOLDER, place)


def _put_index(index: EntityIndex, folder: Path, place: Callable[[Path, Path], object]) -> None:
    """Make the new ``folder`` the version of the index that ``index`` is: its files by ``place``, the manifest last.

    The writers' lock, and files of other versions, stay behind.
    """
    folder.mkdir()
    with disk_errors(folder):
        for file in index.manifest.files:
            place((index.path / file.name).resolve(), folder / file.name)
        index.manifest.write(folder)


def _link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system has them: the files of an index never change."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _symlink(source: Path, target: Path) -> None:
    target.symlink_to(source)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
