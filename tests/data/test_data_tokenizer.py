import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from m3el_fast.data.tokenizer import train_tokenizer

TEXTS = [f"Marlow [SEP] The {trade} of Marlow was {state}." for trade in ("inn", "mill") for state in ("shut", "open")]


def test_adds_special_tokens_and_pads() -> None:
    tokenizer = train_tokenizer(TEXTS, 400)
    specials = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id, tokenizer.eos_token_id]
    assert len(set(specials)) == 4
    assert tokenizer.eos_token_id != 2
    batch = tokenizer(["Marlow [SEP] an inn", "Marlow"], padding="max_length", max_length=9, truncation=True)
    long, short = batch["input_ids"]
    assert tokenizer.convert_ids_to_tokens(long)[:3] == ["<|startoftext|>", "Ġmarlow", "[SEP]"]
    assert short[2:] == [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * 6
    assert batch["attention_mask"][1] == [1, 1, 1] + [0] * 6
    assert set(batch) == {"input_ids", "attention_mask"}


def test_truncation_keeps_the_end() -> None:
    tokenizer = train_tokenizer(TEXTS, 400)
    ids = tokenizer("Marlow " * 30, truncation=True, max_length=8)["input_ids"]
    assert len(ids) == 8
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    "text", ["Tír Bán", "日本語 😀", "\t\x00\x7f", ""], ids=["accents", "not Latin", "control", "empty"]
)
def test_encodes_what_it_never_saw(text: str) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    ids = tokenizer(text)["input_ids"]
    assert None not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text.lower().strip()


def test_case_and_place_in_the_text_do_not_matter() -> None:
    tokenizer = train_tokenizer(TEXTS, 400)
    assert tokenizer("MARLOW marlow")["input_ids"][1:-1] == tokenizer("Marlow")["input_ids"][1:-1] * 2


def test_vocabulary_size() -> None:
    assert len(train_tokenizer(TEXTS, 270)) == 270
    assert len(train_tokenizer(TEXTS, 10_000)) < 400


def test_survives_saving(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 400)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(TEXTS, padding=True)["input_ids"] == tokenizer(TEXTS, padding=True)["input_ids"]
    assert (again.pad_token_id, again.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


def test_same_tokenizer_in_another_process() -> None:
    code = (
        "from m3el_fast.data.tokenizer import train_tokenizer as t;"
        f"print(t({TEXTS!r} * 40, 400).backend_tokenizer.to_str(), end='')"
    )
    other = os.environ | {"PYTHONHASHSEED": "7"}
    found = subprocess.run([sys.executable, "-c", code], env=other, capture_output=True, text=True, check=True)
    assert found.stdout == train_tokenizer(TEXTS * 40, 400).backend_tokenizer.to_str()
