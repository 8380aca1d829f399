"""The authors' released code: its checkpoints in and out, its matchers, losses and evaluation (spec section 10)."""

from m3el_fast.compat.losses import InfoNCELoss, MCLETLoss, WeightedContrastiveLoss
from m3el_fast.compat.matchers import M3ELMatcher, MIMICMatcher
from m3el_fast.compat.ranking import PreparedEntities, Ranking, rank_all
from m3el_fast.compat.released import load_released, to_released

__all__ = [
    "InfoNCELoss",
    "M3ELMatcher",
    "MCLETLoss",
    "MIMICMatcher",
    "PreparedEntities",
    "Ranking",
    "WeightedContrastiveLoss",
    "load_released",
    "rank_all",
    "to_released",
]
