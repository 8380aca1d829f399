"""A checkpoint with its index and model card, there and back: python docs/examples/hub_roundtrip.py [CHECKPOINT]

Works in a folder, without a network; `model.push_to_hub("owner/name", index=...)` sends the same to the Hub.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from huggingface_hub import ModelCard
from sample_set import load

from m3el_fast.data.layout import read_kb
from m3el_fast.link import Linker

model, cases = load(sys.argv[1] if len(sys.argv) > 1 else None, count=2)
linker = Linker(model, read_kb(Path(str(model.config.data.dir)), "attr"))  # encodes the KB: linker.index

with tempfile.TemporaryDirectory() as place:
    folder = Path(place) / "my-model"
    model.save_pretrained(folder, index=linker.index, model_card_kwargs={"license": "cc-by-4.0", "language": "en"})
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size:>12,}  {path.relative_to(folder)}")

    card = ModelCard.load(folder / "README.md")
    print(f"\n{card.data}\n{card.text.split('## Configuration')[0].rstrip()}\n")

    loaded = Linker.from_pretrained(folder)  # or "owner/name": finds the index that came along
    for mention, _ in cases:
        (links,) = loaded.link([{"mention": mention.name, "sentence": mention.sentence, "image": mention.image}], k=3)
        print(f"{mention.sentence}  (answer: {mention.answer})")
        for found in links:
            print(f"  {found['score']:8.3f}  {found['id']}  {found['name']}")
