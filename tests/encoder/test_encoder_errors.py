"""Every way in which a model cannot be used is told in one message that names it."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import constants
from tokenizers import processors
from transformers import (
    BertModel,
    BlipConfig,
    BlipForConditionalGeneration,
    ConvNextConfig,
    ConvNextModel,
    FlavaConfig,
    ResNetConfig,
    ResNetModel,
    T5Config,
)

import encoder_folders as made
from m3el_fast.config import EncoderConfig, ScratchCLIP
from m3el_fast.encoder import Encoder
from m3el_fast.encoder.hub import _hub_answers
from m3el_fast.errors import InputError

LT = made.LT
NOWHERE = "nobody/no-such-model"


def refused(*parts: str, **keys: Any) -> None:
    """Creating the encoder fails with an error that has all the parts."""
    with pytest.raises(InputError) as error:
        Encoder.create(EncoderConfig(**{"max_text_tokens": LT, **keys}))
    for part in parts:
        assert part in str(error.value)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return made.clip(tmp_path / "clip")


# -- names ------------------------------------------------------------------------------------------------------------


def test_offline_without_the_model_says_how_to_fetch_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("encoder.pretrained", NOWHERE, f"hf download {NOWHERE}", "folder", "HF_HOME", pretrained=NOWHERE)


def test_no_connection_to_the_hub_is_found_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not _hub_answers()
    refused("no connection to http://127.0.0.1:9", f"hf download {NOWHERE}", pretrained=NOWHERE)


@pytest.mark.parametrize("status", [200, 404])
def test_a_hub_that_answers_anything_is_there(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert _hub_answers()


def test_a_hub_without_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3el_fast.encoder.hub._hub_answers", lambda: True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("encoder.text", NOWHERE, "hf download", text=NOWHERE, vision=NOWHERE)


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "a/b/c"])
def test_a_path_that_leads_nowhere_is_not_looked_up(name: str) -> None:
    refused("encoder.pretrained", name, "no such folder", pretrained=name)


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    refused("encoder.pretrained", str(tmp_path), "config.json", pretrained=str(tmp_path))


def test_a_file_instead_of_a_folder(clip: Path) -> None:
    refused("encoder.pretrained", pretrained=str(clip / "tokenizer.json"))


def test_a_config_that_is_no_json(clip: Path) -> None:
    (clip / "config.json").write_text("{")
    refused("encoder.pretrained", str(clip), "config.json", pretrained=str(clip))


def test_no_weights(clip: Path) -> None:
    (clip / "model.safetensors").unlink()
    refused("encoder.pretrained", str(clip), "weights", pretrained=str(clip))


def test_truncated_weights(clip: Path) -> None:
    weights = clip / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused("encoder.pretrained", str(clip), "readable weights", "Fetch the model again", pretrained=str(clip))


@pytest.mark.parametrize("left", ["nothing", "tokenizer_config.json"])
def test_no_tokenizer(clip: Path, left: str) -> None:
    for path in clip.glob("*token*"):
        if path.name != left:
            path.unlink()
    refused("encoder.pretrained", str(clip), "tokenizer files", pretrained=str(clip))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_truncated_tokenizer(clip: Path, name: str) -> None:
    path = clip / name
    path.write_text(path.read_text()[:-9])
    refused("encoder.pretrained", str(clip), "tokenizer files", pretrained=str(clip))


def test_no_image_processor(clip: Path) -> None:
    (clip / "preprocessor_config.json").unlink()
    refused("encoder.pretrained", str(clip), "preprocessor_config.json", pretrained=str(clip))


@pytest.mark.parametrize("std", [None, [0.5], [0.5, 0.0, 0.5], "half", [0.5, "x", 0.5]])
def test_an_image_processor_without_mean_or_deviation(clip: Path, std: object) -> None:
    (clip / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": std}))
    refused(str(clip), "image_std", "three numbers", pretrained=str(clip))


# -- architectures ----------------------------------------------------------------------------------------------------


def test_a_single_tower_is_no_whole_model(tmp_path: Path) -> None:
    folder = str(made.bert(tmp_path))
    refused("model_type bert", "clip, siglip, siglip2, blip, vision-text-dual-encoder", folder, pretrained=folder)


@pytest.mark.parametrize("config", [FlavaConfig(), T5Config()], ids=["flava", "t5"])
def test_unsupported_architectures(config: Any, tmp_path: Path, clip: Path) -> None:
    config.save_pretrained(tmp_path / "other")
    kind, folder = f"model_type {config.model_type}", str(tmp_path / "other")
    refused("encoder.pretrained", folder, kind, "siglip", pretrained=folder)
    refused("encoder.text", folder, kind, "siglip", text=folder, vision=str(clip))


def test_a_model_type_that_nobody_knows(clip: Path) -> None:
    (clip / "config.json").write_text(json.dumps({"model_type": "tomorrow"}))
    refused("encoder.vision", "model_type tomorrow", text=str(made.bert(clip / "bert")), vision=str(clip))


def test_towers_of_the_other_modality(tmp_path: Path) -> None:
    bert, vit = str(made.bert(tmp_path / "bert")), str(made.vit(tmp_path / "vit"))
    refused("encoder.text", "a text tower", "model_type vit", text=vit, vision=vit)
    refused("encoder.vision", "a vision tower", "model_type bert", text=bert, vision=bert)


def test_convolutional_towers(tmp_path: Path) -> None:
    bert = str(made.bert(tmp_path / "bert"))
    convnext = ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], image_size=32)
    folder = str(made.save(tmp_path / "convnext", ConvNextModel(convnext), None))
    refused("vision tower", "[n, tokens, width]", "ConvNextModel", text=bert, vision=folder)
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    folder = str(made.save(tmp_path / "resnet", ResNetModel(resnet), None))
    refused("vision tower (resnet)", "one image size", text=bert, vision=folder)


def test_a_checkpoint_without_the_text_towers_weights(tmp_path: Path) -> None:
    """BLIP's captioning models have a text decoder only."""
    sizes = {**made.SIZES, "vocab_size": 20, "encoder_hidden_size": 32}
    config = BlipConfig(text_config=sizes, vision_config={**made.SIZES, **made.IMAGE})
    folder = str(made.save(tmp_path, BlipForConditionalGeneration(config), made.bert_tokenizer()))
    refused(folder, "weights for every part of BlipModel", "text_model.", pretrained=folder)


def test_gradient_checkpointing_where_a_model_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"text": str(made.bert(tmp_path / "bert")), "vision": str(made.vit(tmp_path / "vit"))}
    monkeypatch.setattr(BertModel, "supports_gradient_checkpointing", False)
    refused("encoder.gradient_checkpointing", "BertModel", gradient_checkpointing=True, **keys)


# -- sizes and tokenizers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        pytest.param(made.bert, made.POSITIONS, id="bert"),
        pytest.param(made.roberta, made.POSITIONS - 2, id="roberta, which counts from the padding id + 1"),
        pytest.param(made.clip, made.POSITIONS, id="clip"),
        pytest.param(made.siglip, made.POSITIONS, id="siglip"),
    ],
)
def test_more_tokens_than_positions(text: Any, limit: int, tmp_path: Path) -> None:
    keys = {"text": str(text(tmp_path / "text")), "vision": str(made.vit(tmp_path / "vit"))}
    refused("encoder.max_text_tokens", f"at most {limit}", f"got {limit + 1}", max_text_tokens=limit + 1, **keys)
    encoder = Encoder.create(EncoderConfig(**keys, max_text_tokens=limit))
    ids, mask = encoder.tokenize(["a " * 99])
    assert mask.sum() == limit
    assert encoder.model.text(ids, mask)[1].shape[1] == limit


def test_a_tokenizer_with_more_tokens_than_the_model(clip: Path) -> None:
    made.clip_tokenizer(("b", "c", "d", "<start>", "<end>")).save_pretrained(clip)
    refused("tokenizer", "at most 17 tokens", "got 20", pretrained=str(clip))


def test_clip_needs_an_end_of_text() -> None:
    words = made.clip_tokenizer()
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    with pytest.raises(InputError, match="a closing end-of-text token"):
        Encoder.create(EncoderConfig(scratch=ScratchCLIP(), max_text_tokens=LT), words)


def test_no_padding_token(tmp_path: Path) -> None:
    words = made.bert_tokenizer()
    words.pad_token = None
    words.save_pretrained(tmp_path)
    scratch = ScratchCLIP(tokenizer=str(tmp_path))
    refused("encoder.scratch.tokenizer", str(tmp_path), "padding token", scratch=scratch)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("text_width", 30, "text_heads (4)"),
        ("vision_width", 30, "vision_heads (4)"),
        ("image_size", 30, "patch_size (8)"),
    ],
)
def test_scratch_sizes_that_do_not_divide(key: str, value: int, part: str) -> None:
    config = EncoderConfig(scratch=ScratchCLIP(**{key: value}), max_text_tokens=LT)
    with pytest.raises(InputError) as error:
        Encoder.create(config, made.clip_tokenizer())
    assert f"encoder.scratch.{key}: expected a multiple of {part}, got 30" in str(error.value)


def test_a_tokenizer_is_given_where_none_is_named(clip: Path) -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        Encoder.create(EncoderConfig(scratch=ScratchCLIP(), max_text_tokens=LT))
    with pytest.raises(ValueError, match="tokenizer"):
        Encoder.create(EncoderConfig(pretrained=str(clip), max_text_tokens=LT), made.clip_tokenizer())


# -- saved architectures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "part"),
    [
        pytest.param(None, "No such file", id="missing"),
        pytest.param("{", "towers' configurations", id="truncated"),
        pytest.param("[]", "model, or text and vision", id="a list"),
        pytest.param('{"text": {}}', "got text", id="half"),
        pytest.param('{"model": {"model_type": "tomorrow"}}', "got tomorrow", id="unknown model"),
        pytest.param('{"model": 3}', "got None", id="a number"),
    ],
)
def test_a_saved_architecture_that_is_none(content: str | None, part: str, clip: Path, tmp_path: Path) -> None:
    config = EncoderConfig(pretrained=str(clip), max_text_tokens=LT)
    Encoder.create(config).save_architecture(tmp_path / "saved")
    path = tmp_path / "saved" / "towers.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as error:
        Encoder.from_architecture(config, tmp_path / "saved")
    assert str(path) in str(error.value)
    assert part in str(error.value)
