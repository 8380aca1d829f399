"""Linking over HTTP: ``python -m m3el_fast.serve CHECKPOINT --index DIR``; needs the extra ``serve``."""
