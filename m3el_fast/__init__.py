"""m3el_fast: multimodal entity linking with M3EL and MIMIC."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m3el_fast.link import Linker
    from m3el_fast.models import M3EL, MIMIC

__version__ = "0.1.0"
__all__ = ["M3EL", "MIMIC", "Linker", "__version__"]

_HOMES = {"M3EL": "m3el_fast.models", "MIMIC": "m3el_fast.models", "Linker": "m3el_fast.link"}

# An installed package has its kernels inside; in a plain checkout the folder lies beside the package.
_package = Path(__file__).parent
if not (_package / "kernels").exists() and (_package.parent / "csrc").exists():
    __path__.append(str(_package.parent))


def __getattr__(name: str) -> Any:
    # Lazy: `import m3el_fast` must not cost an import of torch and transformers.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
