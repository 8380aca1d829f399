"""Rerank and evaluate with sentence-transformers: python docs/examples/sentence_transformers_rerank.py [CHECKPOINT]"""

from __future__ import annotations

import sys

from sample_set import document, load, query
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator

from m3el_fast.adapters.sentence_transformers import M3ELCrossEncoder

model, cases = load(sys.argv[1] if len(sys.argv) > 1 else None, count=40)
cross_encoder = M3ELCrossEncoder(model)  # or a checkpoint's folder or Hub name

# rank: the candidates of one mention
mention, candidates = cases[0]
print(f"{mention.sentence}  (answer: {mention.answer})")
for found in cross_encoder.rank(query(mention), [document(entity) for entity in candidates], top_k=3):
    entity = candidates[found["corpus_id"]]
    print(f"  {found['score']:8.3f}  {entity.qid}  {entity.name}: {entity.attr}")

# predict: any pairs
scores = cross_encoder.predict([(query(mention), document(entity)) for entity in candidates])
print(f"\n{len(scores)} scores, {scores.dtype}, the best is candidate {scores.argmax()}")

# the library's own evaluation
samples = [
    {
        "query": query(mention),
        "positive": [document(entity) for entity in candidates if entity.qid == mention.answer],
        "documents": [document(entity) for entity in candidates],
    }
    for mention, candidates in cases
]
for name, value in cross_encoder.evaluate(CrossEncoderRerankingEvaluator(samples, at_k=10)).items():
    print(f"{name:14} {value:.3f}")
