"""Link the entities of texts with pictures in a spaCy pipeline: python docs/examples/spacy_pipeline.py [CHECKPOINT]"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import spacy
from sample_set import load

model, cases = load(sys.argv[1] if len(sys.argv) > 1 else None, count=3)

with tempfile.TemporaryDirectory() as folder:
    checkpoint = Path(folder) / "checkpoint"
    model.save_pretrained(checkpoint)  # the component takes a checkpoint's folder or Hub name

    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")  # the model reads a mention in its sentence
    names = {entity.name for _, candidates in cases for entity in candidates}
    ruler = nlp.add_pipe("entity_ruler")  # or a trained "ner": whatever fills doc.ents
    ruler.add_patterns([{"label": "HOUSE", "pattern": [{"ORTH": word} for word in name.split()]} for name in names])
    nlp.add_pipe("m3el_linker", config={"checkpoint": str(checkpoint), "k": 3})

    docs = []
    for mention, _ in cases:
        doc = nlp.make_doc(f"We kept a diary. {mention.sentence}")
        doc._.image = str(mention.image or "")
        docs.append(doc)
    for doc, (mention, _) in zip(nlp.pipe(docs), cases, strict=True):
        for ent in doc.ents:
            print(f"{ent.sent}  (answer: {mention.answer})")
            print(f"  {ent.text} [{ent.label_}] -> {ent.kb_id_}, score {ent._.kb_score:.3f}")
            for one in ent._.kb_candidates:
                print(f"    {one['score']:8.3f}  {one['id']}  {one['name']}")

    nlp.to_disk(Path(folder) / "pipeline")  # with the checkpoint and the index of its KB: all that it needs
    again = spacy.load(Path(folder) / "pipeline")
    doc = again.make_doc(docs[0].text)
    doc._.image = docs[0]._.image
    print(f"\nsaved and loaded: {[(ent.text, ent.kb_id_) for ent in again(doc).ents]}")
