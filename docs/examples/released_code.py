"""The released code's training step and evaluation on m3el_fast: python docs/examples/released_code.py

Its encoder is left out: random features stand for what it returns of mentions and entities, a few of their numbers
shared by a mention and its entity, the rest noise that the matcher learns to ignore.
"""

from __future__ import annotations

import math
from argparse import Namespace

import torch
from torch import Tensor

from m3el_fast import compat
from m3el_fast.compat import M3ELMatcher  # the released line: from codes.model.modeling_m3el import M3ELMatcher
from m3el_fast.metrics import Metrics, table

# the released code's `args`: OmegaConf's configuration does as well
args = Namespace(
    model=Namespace(
        **{"input_hidden_dim": 64, "dt": 64, "dv": 32, "head_num": 5, "weight": 1.0},
        **{"TIMM_hidden_dim": 32, "IIMM_hidden_dim": 32, "CMM_hidden_dim": 32},
        **{"loss_type": 0, "with_cl_loss": 1, "loss_temperature": 0.03, "inter_weight": 1.0, "intra_weight": 0.8},
    ),
    data=Namespace(num_entity=2000, eval_chunk_size=100),
)
SHAPES = (64,), (32,), (10, 64), (12, 32)  # text_embeds, image_embeds, text_seq_tokens, image_patch_tokens
SHARED = 12  # numbers of each vector that a mention has in common with its entity


def encode(shared: list[Tensor]) -> list[Tensor]:
    """What the released encoder returns: four tensors of n items."""
    encoded = [torch.randn(len(shared[0]), *shape) for shape in SHAPES]
    for tensor, common in zip(encoded, shared, strict=True):
        tensor[..., :SHARED] = common + 0.2 * torch.randn_like(common)
    return encoded


def training_step(matcher: M3ELMatcher, entity: list[Tensor], mention: list[Tensor]) -> Tensor:
    """As the released LightningForM3EL has it."""
    entity_text, entity_image, entity_tokens, entity_patches = entity
    mention_text, mention_image, mention_tokens, mention_patches = mention
    features = (entity_text, entity_tokens, mention_text, mention_tokens)
    features += (entity_image, entity_patches, mention_image, mention_patches)
    logits, (text_logits, image_logits, image_text_logits), cl_loss = matcher(*features, train_flag=True)
    labels = torch.arange(len(mention_text))
    loss = sum(torch.nn.functional.cross_entropy(x, labels) for x in (logits, text_logits, image_logits))
    return loss + torch.nn.functional.cross_entropy(image_text_logits, labels) + cl_loss


@torch.no_grad()
def released_loop(matcher: M3ELMatcher, entity: list[Tensor], mention: list[Tensor], answer: Tensor) -> Tensor:
    """The released evaluation: chunk after chunk, then a double argsort."""
    scores = []
    size = args.data.eval_chunk_size
    for i in range(math.ceil(args.data.num_entity / size)):
        text, image, tokens, patches = (x[i * size : (i + 1) * size] for x in entity)
        m_text, m_image, m_tokens, m_patches = mention
        score, _, _ = matcher(text, tokens, m_text, m_tokens, image, patches, m_image, m_patches, train_flag=False)
        scores.append(score)
    rank = torch.argsort(torch.argsort(torch.concat(scores, dim=-1), dim=-1, descending=True), dim=-1) + 1
    return rank[torch.arange(len(answer)), answer]


torch.manual_seed(43)
common = [torch.randn(args.data.num_entity, *shape[:-1], SHARED) for shape in SHAPES]
entities = encode(common)
matcher = M3ELMatcher(args)
optimizer = torch.optim.AdamW(matcher.parameters(), lr=3e-3)
answer = torch.randint(args.data.num_entity, (100,))
mentions = encode([x[answer] for x in common])

results = {"untrained": compat.rank_all(matcher, mentions, entities, answer).rank}
for step in range(60):
    gold = torch.randperm(args.data.num_entity)[:64]
    loss = training_step(matcher, [x[gold] for x in entities], encode([x[gold] for x in common]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1}: loss {loss.item():.2f}")

ranking = compat.rank_all(matcher, mentions, entities, answer, k=3)
loop = released_loop(matcher, entities, mentions, answer)
results |= {"trained, rank_all": ranking.rank, "trained, released loop": loop}
print(f"\n{len(answer)} mentions against {len(entities[0])} entities")
print(table({name: Metrics.of(ranks) for name, ranks in results.items()}))
print(f"ranks that agree: {int((ranking.rank == loop).sum())} of {len(answer)}")
print(f"best three of the first mention (gold {answer[0]}): {ranking.best.rows[0].tolist()}")
