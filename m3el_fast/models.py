"""M3EL and MIMIC: encoder + matcher + loss, and their checkpoint folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import Self

from m3el_fast.config import M3ELConfig, MIMICConfig, RunConfig, read_yaml
from m3el_fast.encoder import Encoder
from m3el_fast.encoder.encoder import ARCHITECTURE_FILE
from m3el_fast.errors import InputError
from m3el_fast.features import Features, Inputs, Scores, TowerOutputs
from m3el_fast.files import replace_folder
from m3el_fast.gather import gather_rows, world
from m3el_fast.hub_card import edited, make_card, published, published_towers
from m3el_fast.hub_results import Results
from m3el_fast.hub_transfer import CARD_FILE, INDEX_FOLDER, Repository, download, require_repository_name
from m3el_fast.losses import ContrastiveLoss, matching_losses
from m3el_fast.matching import Side, build_matcher

if TYPE_CHECKING:
    from m3el_fast.index import EntityIndex

CONFIG_FILE = "config.yaml"
WEIGHTS_FILE = "model.safetensors"


class MELModel(nn.Module, ModelHubMixin, library_name="m3el_fast", tags=["entity-linking", "multimodal"]):
    """A multimodal entity linking model; use :class:`M3EL` or :class:`MIMIC`.

    Args:
        config: the run's whole configuration, kept with the checkpoint.
        encoder: the two towers.

    Attributes:
        results: what was measured of these weights, kept with the checkpoint; None = nothing. Set it to None, or to
            what is true then, after training on.
        card: the text of a model card that its user wrote or changed, which is kept; None = one is generated.

    Raises:
        InputError: ``config.model`` is not of this class.
    """

    model_type: ClassVar[type[M3ELConfig] | type[MIMICConfig]]

    def __init__(self, config: RunConfig, encoder: Encoder) -> None:
        super().__init__()
        if not isinstance(config.model, self.model_type):
            raise InputError("model", f"a configuration of {type(self).__name__}", config.model.type)
        self.config = config
        self.encoder = encoder
        self.matcher = build_matcher(config.model, encoder.dims)
        self.results: Results | None = None
        self.card: bytes | None = None
        self.contrastive: ContrastiveLoss | None = None
        if isinstance(config.model, M3ELConfig) and config.model.contrastive != "none":
            self.contrastive = ContrastiveLoss(config.model, encoder.dims)

    @property
    def device(self) -> torch.device:
        return next(self.matcher.parameters()).device

    def features(self, batch: Inputs | TowerOutputs) -> Features:
        """Features of a batch of raw inputs, or of tower outputs that were computed before."""
        result: Features = self.encoder(batch) if isinstance(batch, Inputs) else self.encoder.project(batch)
        return result

    def entity_side(self, batch: Inputs | TowerOutputs) -> Side:
        return self.matcher.entity_side(self.features(batch))

    def mention_side(self, batch: Inputs | TowerOutputs) -> Side:
        return self.matcher.mention_side(self.features(batch))

    def forward(
        self, entities: Inputs | TowerOutputs, mentions: Inputs | TowerOutputs, gold: Tensor
    ) -> dict[str, Tensor]:
        """Training losses of a batch of pairs (entity i, mention i); ``gold`` [B] int64 identifies the entities.

        In a distributed run the batches of all processes are each other's negatives. Returns scalars by name; ``total``
        is their sum, of which the mean over processes is the loss of the whole batch (spec sections 3.3 and 4).
        """
        left, right = self.features(entities), self.features(mentions)
        # scores reach 80 and similarities are divided by tau: bf16's three digits are too few behind the towers
        with torch.autocast(self.device.type, enabled=False):
            return self.losses(_float(left), _float(right), gold)

    def losses(self, entities: Features, mentions: Features, gold: Tensor) -> dict[str, Tensor]:
        """As :meth:`forward`, from features."""
        rank, processes = world()
        first = rank * len(mentions)
        own = range(first, first + len(mentions))
        everyone = gather_rows(gold) if self.config.model.mask_duplicates else None
        duplicates = None if everyone is None else gold[:, None] == everyone
        side = self.matcher.entity_side(entities)
        if processes > 1:
            side = side.map(gather_rows)
        scores: Scores = self.matcher.score(self.matcher.mention_side(mentions), side)
        losses = matching_losses(scores, self.config.model, duplicates, first)
        if self.contrastive is not None:
            losses["contrastive"] = self.contrastive(_globals(entities), _globals(mentions), everyone, own)
        return {"total": torch.stack(list(losses.values())).sum(), **losses}

    # -- checkpoint ------------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        index: EntityIndex | str | Path | None = None,
        model_card_kwargs: Mapping[str, Any] | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write the checkpoint folder: configuration, weights, tokenizer and image-processor files, metrics and a card.

        The folder appears whole or not at all; a checkpoint that is there is replaced, all but a ``README.md`` that
        was edited, which stays as it is, and an index of these very weights.

        Args:
            index: of a KB, encoded with this model: goes into the folder ``index/``, as hard links where that can be.
            model_card_kwargs: metadata of the generated card, as ``ModelCardData`` takes them: ``license``,
                ``language``, ``datasets``, ...
            push_to_hub: then :meth:`push_to_hub` to ``repo_id`` (default: the folder's name), whose arguments follow.

        Raises:
            InputError: there is a file, or a folder of other files, which would be lost; the index is another model's.
        """
        from m3el_fast.hub_index import given_index, kept_index, link_or_copy

        target = Path(save_directory)
        if target.exists() and not (target / CONFIG_FILE).exists() and not _is_empty_folder(target):
            got = "a folder of other files" if target.is_dir() else "a file"
            raise InputError(target, "a new folder or a checkpoint to replace", got)
        carried = kept_index(self, target) if index is None else given_index(self, index)
        card = edited(_read(target / CARD_FILE)) or self.card
        with replace_folder(target) as folder:
            self._write(folder, self.config, target.name, carried, link_or_copy, card, model_card_kwargs)
        if push_to_hub:
            options = {"index": carried, "model_card_kwargs": model_card_kwargs, **push_to_hub_kwargs}
            return self.push_to_hub(repo_id or target.name, **options)
        return None

    def push_to_hub(  # type: ignore[override]  # the mixin's patterns would part an index from its weights
        self,
        repo_id: str,
        *,
        index: EntityIndex | str | Path | None = None,
        model_card_kwargs: Mapping[str, Any] | None = None,
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        commit_message: str = "A checkpoint of m3el_fast",
    ) -> str:
        """Make this model the checkpoint in a repository of the Hugging Face Hub; it is created where there is none.

        The names of this machine's folders stay here (:func:`published`). A card that was edited, here or else on the
        Hub, is kept. The repository's index is ``index`` afterwards, or none; other files in it stay.

        Args:
            index, model_card_kwargs: as in :meth:`save_pretrained`.
            private: of a new repository; token: None = that of ``hf auth login``; branch: None = main.

        Returns:
            The address of the commit.

        Raises:
            InputError: the index is another model's (nothing is sent), or the Hub refuses, in its words.
        """
        from m3el_fast.hub_index import given_index

        require_repository_name(repo_id)
        carried = None if index is None else given_index(self, index)
        repository = Repository(repo_id, private, token, branch)
        card = self.card or edited(repository.card())
        with tempfile.TemporaryDirectory() as place:
            self.stage(Path(place), repository.name, carried, card, model_card_kwargs)
            return repository.upload(Path(place), commit_message)

    def stage(
        self,
        folder: Path,
        repo_id: str,
        index: EntityIndex | None = None,
        card: bytes | None = None,
        model_card_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Write what :meth:`push_to_hub` sends into an empty folder; an index's files as symbolic links."""
        self._write(folder, published(self.config), repo_id, index, _symlink, card, model_card_kwargs)
        towers = folder / ARCHITECTURE_FILE
        towers.write_text(published_towers(towers.read_text(encoding="utf-8")), encoding="utf-8")

    def generate_model_card(
        self, name: str = "CHECKPOINT", *, entities: int | None = None, **metadata: Any
    ) -> ModelCard:
        """The card of this model.

        Args:
            name: of the folder or repository, for the lines that show how to use it.
            entities: in the index that comes with it, None = there is none.
            metadata: as ``model_card_kwargs``.
        """
        data, results = self._hub_mixin_info.model_card_data, self.results
        config = published(self.config)
        return make_card(config, data, name=name, results=results, entities=entities, metadata=metadata)

    def _write(
        self,
        folder: Path,
        config: RunConfig,
        name: str,
        index: EntityIndex | None,
        place: Callable[[Path, Path], object],
        card: bytes | None,
        metadata: Mapping[str, Any] | None,
    ) -> None:
        from m3el_fast.hub_index import put_index

        (folder / CONFIG_FILE).write_text(config.dump(), encoding="utf-8")
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        self.encoder.save_architecture(folder)
        if self.results is not None:
            self.results.write(folder)
        if index is not None:
            put_index(index, folder / INDEX_FOLDER, place)
        if card is None:
            entities = None if index is None else len(index)
            card = str(self.generate_model_card(name, entities=entities, **metadata or {})).encode()
        (folder / CARD_FILE).write_bytes(card)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load a checkpoint folder, or one from the Hugging Face Hub by name (``revision``, ``cache_dir``, ``token``).

        An index that comes with it is left where it is: :meth:`Linker.from_pretrained` fetches and opens it.

        Raises:
            InputError: there is no such checkpoint, it is of another model, or a weight is missing, unknown or of
                another shape.
        """
        folder = fetch_checkpoint(pretrained_model_name_or_path, **kwargs)
        config = RunConfig.parse(read_yaml(folder / CONFIG_FILE), folder / CONFIG_FILE)
        if not isinstance(config.model, cls.model_type):
            expected = f"a checkpoint of {cls.__name__}"
            raise InputError(f"{folder / CONFIG_FILE}, key model.type", expected, config.model.type)
        model = cls(config, Encoder.from_architecture(config.encoder, folder))
        load_weights(model, folder / WEIGHTS_FILE)
        model.results, model.card = Results.read(folder), edited(_read(folder / CARD_FILE))
        return model.eval()


class M3EL(MELModel):
    """M3EL (Hu et al., KDD 2025; spec sections 1 to 3)."""

    model_type = M3ELConfig


class MIMIC(MELModel):
    """MIMIC (Luo et al., KDD 2023; spec sections 1 and 4)."""

    model_type = MIMICConfig


def build_model(config: RunConfig, encoder: Encoder) -> MELModel:
    """The model that ``config.model`` names, with fresh matcher weights."""
    return (M3EL if isinstance(config.model, M3ELConfig) else MIMIC)(config, encoder)


def load_model(name: str | Path, **kwargs: Any) -> MELModel:
    """Load a checkpoint of either model, in evaluation mode. Arguments and errors as of ``from_pretrained``."""
    folder = fetch_checkpoint(name, **kwargs)
    config = RunConfig.parse(read_yaml(folder / CONFIG_FILE), folder / CONFIG_FILE)
    return (M3EL if isinstance(config.model, M3ELConfig) else MIMIC).from_pretrained(folder)


def fetch_checkpoint(name: str | Path, *, with_index: bool = False, **kwargs: Any) -> Path:
    """The checkpoint's folder: ``name`` itself, or the Hub's files of that name in the local cache.

    Args:
        with_index: fetch the index that comes with it, too.
        kwargs: as of ``from_pretrained``.
    """
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists() or str(name).count("/") != 1:
            got = "a file" if folder.exists() else "no such folder"
            raise InputError(name, "a checkpoint folder or a Hub name like owner/model", got)
        folder = download(str(name), with_index, **kwargs)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise InputError(folder, f"a checkpoint folder with {CONFIG_FILE} and {WEIGHTS_FILE}", f"no {file} in it")
    return folder


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file strictly; an :class:`InputError` names what is missing, unknown or of another shape."""
    load_state(model, read_weights(path), path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises :class:`InputError` where it is damaged or something else."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(path, "a safetensors file", str(error)) from None


def load_state(module: nn.Module, state: dict[str, Tensor], where: str | Path) -> None:
    """Load a state dict strictly. Raises :class:`InputError` as :func:`load_weights`."""
    own = module.state_dict()
    refuse_names(set(own) - set(state), set(state) - set(own), where)
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise InputError(f"{where}, {name}", f"shape {tuple(own[name].shape)}", tuple(tensor.shape))
    module.load_state_dict(state)


def refuse_names(missing: Collection[str], unknown: Collection[str], where: str | Path) -> None:
    """An :class:`InputError` that lists weights where there are any missing or unknown ones."""
    for names, problem in ((missing, "missing"), (unknown, "unknown")):
        if names:
            listed = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
            raise InputError(where, "the weights of this model", f"{len(names)} {problem}: {listed}")


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _symlink(source: Path, target: Path) -> None:
    target.symlink_to(source)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _float(features: Features) -> Features:
    """Tower outputs of an autocast region back in fp32 at least."""
    values = vars(features)
    wide = {
        k: v.float() if v is not None and v.dtype in (torch.bfloat16, torch.float16) else v for k, v in values.items()
    }
    return Features(**wide)


def _globals(features: Features) -> tuple[Tensor, Tensor]:
    image = features.image_global
    if features.image_index is not None:
        image = image[features.image_index]
    return gather_rows(features.text_global), gather_rows(image)
