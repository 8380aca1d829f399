"""Rerank in PyLate's manner: python docs/examples/pylate_rerank.py [CHECKPOINT]"""

from __future__ import annotations

import sys

from sample_set import document, load, query

from m3el_fast.adapters.pylate import M3ELEncoder, rerank

model, cases = load(sys.argv[1] if len(sys.argv) > 1 else None, count=3)
encoder = M3ELEncoder(model)  # or a checkpoint's folder or Hub name

queries_embeddings = encoder.encode([query(mention) for mention, _ in cases], is_query=True)
documents_embeddings = encoder.encode([[document(e) for e in candidates] for _, candidates in cases], is_query=False)
results = rerank(
    documents_ids=[[entity.qid for entity in candidates] for _, candidates in cases],
    queries_embeddings=queries_embeddings,
    documents_embeddings=documents_embeddings,
)
for (mention, _), found in zip(cases, results, strict=True):
    print(f"{mention.sentence}  (answer: {mention.answer})")
    print("  " + ", ".join(f"{one['id']} {one['score']:.3f}" for one in found[:3]))
