"""Checkpoints of the authors' released code as our modules, and back without loss (spec section 10)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from m3el_fast.compat.names import is_mimic, is_never_used, m3el_names, mimic_names
from m3el_fast.compat.unpickle import load_pickle, plain
from m3el_fast.config import EncoderConfig, M3ELConfig, MIMICConfig, RunConfig
from m3el_fast.encoder import Encoder
from m3el_fast.errors import InputError
from m3el_fast.features import FeatureDims
from m3el_fast.matching import Matcher, build_matcher
from m3el_fast.models import MELModel, build_model
from m3el_fast.weights import load_state, read_weights, refuse_names

State = dict[str, Tensor]
T = TypeVar("T", bound=nn.Module)

_ENCODER = {"clip.": "model.", "image_cls_fc.": "image_global_proj.", "image_tokens_fc.": "image_local_proj."}
_HEADS = "multi_head_module.weight"


def load_released(
    source: Mapping[str, Tensor] | str | Path,
    bidirectional: bool | None = None,
    encoder: str | Path = "openai/clip-vit-base-patch32",
) -> MELModel | Matcher:
    """Map a released checkpoint of M3EL or MIMIC onto our modules, in evaluation mode.

    Args:
        source: a state dict, or the path of a Lightning ``.ckpt``, a ``torch.save`` file or a safetensors file. No code
            in a pickle is run.
        bidirectional: M3EL only, which of its two forms was trained (spec section 3.2); the file holds the weights of
            both.
        encoder: folder or name of the CLIP that was fine-tuned, for its tokenizer and sizes; used where the checkpoint
            is a whole one (keys ``encoder.*`` and ``matcher.*``).

    Returns:
        M3EL or MIMIC for a whole checkpoint; for a bare matcher's state dict the matcher, called as
        ``matcher(entities, mentions)`` with :class:`~m3el_fast.features.Features`. :func:`to_released` leads back.

    Raises:
        InputError: the file cannot be read, ``bidirectional`` is not given for M3EL, or a weight is missing, unknown or
            of a wrong shape.
    """
    state, settings, where = _read(source)
    whole = any(name.startswith(("encoder.", "matcher.")) for name in state)
    matcher_state = _below(state, "matcher.") if whole else state
    mimic = is_mimic(set(matcher_state))
    if not mimic and bidirectional is None:
        raise InputError("bidirectional", "True or False for a checkpoint of M3EL, whose files hold both forms", None)
    names = mimic_names() if mimic else m3el_names(bool(bidirectional))
    used, unused = _map_matcher(matcher_state, names, mimic, bool(bidirectional), where)
    config = MIMICConfig(d=_width(used)) if mimic else _m3el_config(used, bool(bidirectional), settings, where)
    dims = FeatureDims(*(used[f"{name}_norm.weight"].shape[0] for name in _FEATURES))
    if not whole:
        matcher = build_matcher(config, dims)
        _load(matcher, used, where)
        return _remember(matcher, names, unused)
    stray = sorted(name for name in state if not name.startswith(("encoder.", "matcher.")))
    if stray:
        raise InputError(where, "weights under encoder. and matcher. only", ", ".join(stray[:5]))
    released_encoder = _below(state, "encoder.")
    towers = EncoderConfig(pretrained=str(encoder), dv=dims.image_global)
    positions = released_encoder.get("clip.text_model.embeddings.position_embedding.weight")
    if positions is not None:  # fewer than usual in a small CLIP
        length = min(towers.max_text_tokens, len(positions))
        towers = towers.model_copy(update={"max_text_tokens": length})
    run = RunConfig(model=config, encoder=towers)
    model = build_model(run, Encoder.create(run.encoder))
    encoder_state, encoder_unused = _map_encoder(released_encoder)
    _load(model.encoder, encoder_state, where)
    _load(model.matcher, used, where)
    _remember(model.matcher, names, unused)
    _remember(model.encoder, {}, encoder_unused)
    return model.eval()


def to_released(module: MELModel | Matcher) -> State:
    """The released state dict of what :func:`load_released` returned, with the weights as they are now.

    Raises:
        ValueError: the module did not come from :func:`load_released`.
    """
    if isinstance(module, Matcher):
        return _matcher_back(module)
    encoder = {f"encoder.{_rename(name, _BACK)}": value for name, value in module.encoder.state_dict().items()}
    encoder |= {f"encoder.{name}": value for name, value in _memory(module.encoder)[1].items()}
    return encoder | {f"matcher.{name}": value for name, value in _matcher_back(module.matcher).items()}


_FEATURES = ("text_global", "text_local", "image_global", "image_local")
_BACK = {ours: theirs for theirs, ours in _ENCODER.items()}


def _read(source: Mapping[str, Tensor] | str | Path) -> tuple[State, dict[str, Any], str]:
    """State dict, the released configuration's ``model`` section where the file has one, and a name for errors."""
    if isinstance(source, Mapping):
        return dict(source), {}, "state dict"
    path = Path(source)
    if path.suffix == ".safetensors" and path.is_file():
        return read_weights(path), {}, str(path)
    data = load_pickle(path)
    settings: Any = {}
    if isinstance(data, dict) and isinstance(data.get("state_dict"), dict):
        settings = plain(data.get("hyper_parameters"))
        data = data["state_dict"]
    if not isinstance(data, dict) or not data or not all(isinstance(value, Tensor) for value in data.values()):
        raise InputError(path, "a state dict or a Lightning checkpoint", type(data).__name__)
    return dict(data), _model_section(settings), str(path)


def _model_section(settings: Any) -> dict[str, Any]:
    """``args.model`` of the hyperparameters, wherever Lightning put ``args``."""
    for key in ("args", "model"):
        if isinstance(settings, dict) and isinstance(settings.get(key), dict):
            settings = settings[key]
    return settings if isinstance(settings, dict) else {}


def _m3el_config(used: State, bidirectional: bool, settings: dict[str, Any], where: str) -> M3ELConfig:
    given = {"lam": "weight", "tau": "loss_temperature", "gamma": "inter_weight", "beta": "intra_weight"}
    values = {ours: settings[theirs] for ours, theirs in given.items() if settings.get(theirs) is not None}
    base = M3ELConfig.released(bidirectional).model_dump()
    sizes = {"d": _width(used), "heads": used["cross.head_weight"].numel()}
    return M3ELConfig.parse(base | values | sizes, where)


def _width(used: State) -> int:
    return used["text.query.bias"].shape[0]


def _map_matcher(
    state: State, names: dict[str, str], mimic: bool, bidirectional: bool, where: str
) -> tuple[State, State]:
    missing = set(names) - set(state)
    unused = {name: value for name, value in state.items() if name not in names}
    unknown = [n for n in unused if not is_never_used(n, mimic=mimic, bidirectional=bidirectional)]
    refuse_names(missing, unknown, where)
    used = {names[name]: value for name, value in state.items() if name in names}
    if "cross.head_weight" in used:
        used["cross.head_weight"] = used["cross.head_weight"].flatten()
    return used, unused


def _map_encoder(state: State) -> tuple[State, State]:
    renamed = {_rename(name, _ENCODER): name for name in state}
    # older transformers stored this index
    unused = {name: state[name] for name in state if name.endswith("embeddings.position_ids")}
    return {ours: state[name] for ours, name in renamed.items() if name not in unused}, unused


def _load(module: nn.Module, state: State, where: str) -> None:
    module.to(next(iter(state.values())).dtype)
    load_state(module, state, where)


def _remember(module: T, names: dict[str, str], unused: State) -> T:
    """Keep what the way back needs beside the module's own weights."""
    module.__dict__["_released"] = (names, {name: value.clone() for name, value in unused.items()})
    return module.eval()


def _memory(module: nn.Module) -> tuple[dict[str, str], State]:
    if "_released" not in module.__dict__:
        raise ValueError("module: expected one that load_released returned")
    memory: tuple[dict[str, str], State] = module.__dict__["_released"]
    return memory


def _matcher_back(matcher: Matcher) -> State:
    names, unused = _memory(matcher)
    own = matcher.state_dict()
    state = {theirs: own[ours] for theirs, ours in names.items()}
    state = {name: value[:, None] if name.endswith(_HEADS) else value for name, value in state.items()}
    return state | unused


def _below(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _rename(name: str, prefixes: dict[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
