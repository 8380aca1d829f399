"""Rank with the rerankers library: python docs/examples/rerankers_rank.py [CHECKPOINT]"""

from __future__ import annotations

import sys

from rerankers import Document
from sample_set import load, query

from m3el_fast.adapters.rerankers import M3ELRanker

model, cases = load(sys.argv[1] if len(sys.argv) > 1 else None, count=2)
ranker = M3ELRanker(model, verbose=0)  # or a checkpoint's folder or Hub name

for mention, candidates in cases:
    documents = [
        Document(
            text=f"{entity.name} [SEP] {entity.attr}",
            image_path=str(entity.images[0]) if entity.images else None,
            doc_id=entity.qid,
            metadata={"name": entity.name},
        )
        for entity in candidates
    ]
    results = ranker.rank(query(mention), documents)
    print(f"{mention.sentence}  (answer: {mention.answer})")
    for result in results.top_k(3):
        print(f"  {result.rank}.  {result.score:8.3f}  {result.doc_id}  {result.text}")
    print(f"  score of the answer: {results.get_score_by_docid(mention.answer):.3f}\n")
