"""Import what a wheel installed into the folder of the first argument: all of it, and nothing of the checkout.

The native extension must be there with its CUDA kernels, whether or not this torch has CUDA.
"""

import pkgutil
import sys
from importlib import import_module
from pathlib import Path

import torch

import m3el_fast
from m3el_fast.config import RunConfig, preset_names
from m3el_fast.ops.build import native_report

folder = Path(sys.argv[1]).resolve()
names = [module.name for module in pkgutil.walk_packages(m3el_fast.__path__, "m3el_fast.")]
modules = [import_module(name) for name in names if not name.endswith(("__main__", "._native"))]
outside = [module.__file__ for module in modules if folder not in Path(str(module.__file__)).resolve().parents]
assert not outside, f"not from the wheel: {outside}"
assert "m3el_fast.kernels" in names
for preset in preset_names():
    RunConfig.load(preset)
for data in ("hub_card.md", "py.typed"):
    assert (Path(m3el_fast.__file__).parent / data).is_file(), data
report = native_report()
assert not report.missing and not report.cuda_missing, report
for op in ("topk", "topk_merge", "rerank_topk"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"m3el_fast::{op}", "CUDA"), f"{op} has no CUDA kernel"
print(f"wheel: {len(modules)} modules, {len(preset_names())} presets, {report.summary}, {report.cuda}")
