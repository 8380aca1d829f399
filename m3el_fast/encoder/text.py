"""Tokenizers: loading one, and turning texts into padded ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import AutoTokenizer, CLIPTokenizer, PreTrainedTokenizerBase

from m3el_fast.encoder.hub import fetch
from m3el_fast.errors import InputError


def load_tokenizer(where: str, name: str) -> PreTrainedTokenizerBase:
    """Tokenizer of a folder or hub name; CLIP's bare ``vocab.json`` + ``merges.txt`` is enough.

    Raises:
        InputError: no tokenizer files there, or a tokenizer without a padding token.
    """
    tokenizer = fetch(where, "tokenizer files", name, lambda local: _load(name, local))
    if tokenizer.pad_token_id is None:
        raise InputError(f"{where}, {name}", "a tokenizer with a padding token", "none")
    return with_right_padding(tokenizer)


def with_right_padding(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Pad and truncate at the end, whatever the files say: pooling and positions count from the first token."""
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return tokenizer


def starts_with_cls(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether every text begins with a CLS token."""
    return tokenizer.cls_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.cls_token_id


def _load(name: str, local: bool) -> PreTrainedTokenizerBase:
    folder = Path(name)
    described = [folder / file for file in ("tokenizer.json", "tokenizer_config.json", "config.json")]
    bare_clip = all((folder / file).is_file() for file in ("vocab.json", "merges.txt"))
    loader = CLIPTokenizer if bare_clip and not any(path.exists() for path in described) else AutoTokenizer
    try:
        for path in described[:2]:  # the tokenizers library reports broken JSON as a bare Exception
            if path.is_file():
                json.loads(path.read_text(encoding="utf-8"))
        tokenizer: PreTrainedTokenizerBase = loader.from_pretrained(name, local_files_only=local)
    except ValueError as error:
        raise OSError(error) from error
    # transformers 5 answers missing files with a tokenizer that knows its special tokens only.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise OSError("no vocabulary (tokenizer.json, vocab.json, vocab.txt, ...)")
    return tokenizer


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Ids and mask [n, length] int64; truncation keeps the closing special token."""
    encoded = tokenizer(
        list(texts),
        padding="max_length",
        truncation=True,
        max_length=length,
        return_attention_mask=True,
        return_tensors="pt",
    )
    return encoded["input_ids"], encoded["attention_mask"]
