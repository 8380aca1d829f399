"""M3EL and MIMIC: encoder + matcher + loss, and their checkpoint folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from m3el_fast.calibration import Calibration
from m3el_fast.config import M3ELConfig, MIMICConfig, RunConfig, read_yaml
from m3el_fast.encoder import Encoder
from m3el_fast.errors import InputError
from m3el_fast.features import Features, Inputs, Scores, TowerOutputs
from m3el_fast.gather import gather_rows, world
from m3el_fast.hub_card import edited
from m3el_fast.hub_results import Results
from m3el_fast.hub_transfer import CARD_FILE, download
from m3el_fast.losses import ContrastiveLoss, matching_losses
from m3el_fast.matching import Side, build_matcher
from m3el_fast.weights import load_state, read_weights

if TYPE_CHECKING:
    from m3el_fast.index import EntityIndex

CONFIG_FILE = "config.yaml"
WEIGHTS_FILE = "model.safetensors"


class MELModel(nn.Module):
    """A multimodal entity linking model; use :class:`M3EL` or :class:`MIMIC`.

    Args:
        config: the run's whole configuration, kept with the checkpoint.
        encoder: the two towers.

    Attributes:
        results: what was measured of these weights, kept with the checkpoint; None = nothing. Set it to None, or to
            what is true then, after training on.
        calibration: what makes probabilities of these weights' scores, kept with the checkpoint as ``results`` is.
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
        self.calibration: Calibration | None = None
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
            InputError: there is a file, or a folder of other files, which would be lost; the index is another model's;
                metadata for a card that was edited.
        """
        from m3el_fast.checkpoint import index_of, save

        target = Path(save_directory)
        save(self, target, index, model_card_kwargs)
        if push_to_hub:
            options = {"index": index_of(target), "model_card_kwargs": model_card_kwargs, **push_to_hub_kwargs}
            return self.push_to_hub(repo_id or target.name, **options)
        return None

    def push_to_hub(
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

        The names of this machine's folders stay here. A card that was edited, here or else on the Hub, is kept. The
        repository's index is ``index`` afterwards, or none; other files in it stay. All changes in one commit.

        Args:
            index, model_card_kwargs: as in :meth:`save_pretrained`.
            private: of a new repository; token: None = that of ``hf auth login``; branch: None = main.

        Returns:
            The address of the commit.

        Raises:
            InputError: the index is another model's or there is metadata for a card that was edited (nothing is sent),
                or the Hub refuses, in its words.
        """
        from m3el_fast.checkpoint import push

        options: dict[str, Any] = {"private": private, "token": token, "branch": branch, "message": commit_message}
        return push(self, repo_id, index, model_card_kwargs, **options)

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
        weights = folder / WEIGHTS_FILE
        load_state(model, read_weights(weights), weights)
        model.results, model.calibration = Results.read(folder), Calibration.read(folder)
        model.card = edited(read_card(folder))
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


def read_card(folder: Path) -> bytes | None:
    """The model card in a checkpoint folder."""
    path = folder / CARD_FILE
    return path.read_bytes() if path.is_file() else None


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
