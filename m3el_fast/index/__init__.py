"""A persistent index of a KB's entities; ``python -m m3el_fast.index`` builds and changes one."""

from m3el_fast.index.entity_index import EntityIndex
from m3el_fast.index.segment import Entities
from m3el_fast.index.store import EntityBlock
from m3el_fast.index.stream import write_index

__all__ = ["Entities", "EntityBlock", "EntityIndex", "write_index"]
