"""A small tokenizer of the data set's own text, for encoders that are trained from scratch."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

# The end-of-text id must not be 2: transformers' CLIP takes that for an old configuration and pools elsewhere.
_PAD, _BOS, _SEP, _EOS = "<|pad|>", "<|startoftext|>", "[SEP]", "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a lower-casing byte-level BPE: any text is encodable, nothing is unknown.

    Every text becomes bos ... eos; ``[SEP]`` (spec section 1) is one token; padding has a token of its own. The same
    texts in the same order give the same tokenizer.

    Args:
        texts: what it will have to encode.
        vocab_size: tokens at most; never fewer than the 256 bytes and 4 special tokens.
    """
    sep = AddedToken(_SEP, lstrip=True, normalized=False, special=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[_PAD, _BOS, sep, _EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.replace(_SEP, " ") for text in texts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A {_EOS}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (_BOS, _EOS)],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_PAD,
        sep_token=sep,
        model_input_names=["input_ids", "attention_mask"],
    )
