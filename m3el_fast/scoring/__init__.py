"""The steps of :class:`m3el_fast.scorer.Scorer`: scan blocks, settle pairs, keep margins, select, count ranks."""
