"""What ties an index to the model that encoded it."""

from __future__ import annotations

import hashlib

from m3el_fast.index.shards import raw_bytes
from m3el_fast.models import MELModel


def fingerprint(model: MELModel) -> str:
    """A digest of all that the entity side depends on: weights of encoder and matcher, and the matcher's switches."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(model.config.model.model_dump_json().encode())
    digest.update(str(model.config.encoder.max_text_tokens).encode())
    tensors = model.encoder.state_dict(prefix="encoder.") | model.matcher.state_dict(prefix="matcher.")
    normalise = model.encoder.normalise
    tensors |= {"mean": normalise.mean, "std": normalise.std}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(raw_bytes(tensor.cpu()))
    return digest.hexdigest()
