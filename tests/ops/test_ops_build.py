"""The report on the native part: what is there when it is, and the reason when it is not."""

from __future__ import annotations

import os
import platform
import re
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import m3el_fast
from m3el_fast import info
from m3el_fast.ops import build, cuda, gpu
from m3el_fast.ops import native as native_backend
from m3el_fast.ops.build import NativeReport, native_report
from m3el_fast.ops.compiled_for import driver_obstacle


@pytest.fixture
def native() -> NativeReport:
    report = native_report()
    if report.missing and os.environ.get("M3EL_REQUIRE_NATIVE") != "1":
        pytest.skip(report.missing)
    assert not report.missing
    return report


def fresh_report() -> NativeReport:
    return native_report.__wrapped__()


def test_op_is_registered(native: NativeReport) -> None:
    assert torch.ops.m3el_fast.native_abi_version() == build.INTERFACE


def test_report_names_the_build(native: NativeReport) -> None:
    assert native.torch == torch.__version__
    assert native.torch_target == "2.11"
    assert "-std=c++20" in native.flags
    assert native.compiler in str(native)
    assert native.isa in native.summary


def test_isa_is_what_the_kernel_reports(native: NativeReport) -> None:
    cpuinfo = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split()
    levels = {
        "scalar": set(),
        "avx2": {"avx2", "fma", "f16c"},
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    }
    features = set(cpuinfo)
    offered = [level for level, wanted in levels.items() if wanted <= features][-1:]
    if offered == ["avx512"] and "avx512_bf16" in features and "AuthenticAMD" in Path("/proc/cpuinfo").read_text():
        offered = ["avx512bf16"]
    if {"amx_tile", "amx_bf16"} <= features:  # which the kernel may offer and yet refuse to this process
        offered.append("amx")
    assert native.isa in offered


def test_note_of_the_build_is_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("no C++ compiler\nand more\n")
    monkeypatch.setattr(build, "_NOTE", note)
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    report = fresh_report()
    assert report.missing == "no C++ compiler\nand more"
    assert "(no C++ compiler)" in report.summary
    assert "and more" in str(report)


def test_never_built_says_how_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "_NOTE", tmp_path / "none")
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    assert "pip install -e ." in fresh_report().missing


def test_library_that_does_not_load_is_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "_native.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(build, "find_spec", lambda name: ModuleSpec(name, None, origin=str(broken)))
    assert fresh_report().missing.startswith(f"{broken} does not load")


def test_library_of_another_checkout_is_refused(monkeypatch: pytest.MonkeyPatch, native: NativeReport) -> None:
    monkeypatch.setattr(build, "INTERFACE", build.INTERFACE + 1)
    assert "install it again" in fresh_report().missing


@pytest.mark.parametrize(
    ("built_for", "note", "expected"),
    [
        ("nvcc 13.0, sm_90", "left over", ""),
        ("", "no nvcc: install it\nand more\n", "no nvcc: install it\nand more"),
        ("", None, "it was built without them: install it again"),
    ],
    ids=["there", "not-there", "no-note"],
)
def test_cuda_kernels_or_the_reason(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    native: NativeReport,
    built_for: str,
    note: str | None,
    expected: str,
) -> None:
    monkeypatch.setattr("m3el_fast._build_info.cuda", lambda: built_for)
    monkeypatch.setattr(build, "_CUDA_NOTE", tmp_path / "note.txt")
    if note is not None:
        (tmp_path / "note.txt").write_text(note)
    report = fresh_report()
    assert (report.cuda, report.cuda_missing) == (built_for, expected)
    assert (built_for or expected) in str(report)


def test_without_the_library_there_are_no_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    report = fresh_report()
    assert report.missing == report.cuda_missing != ""


def test_cuda_kernels_are_registered_where_the_report_says_so(native: NativeReport) -> None:
    for op in ("topk", "topk_merge", "rerank_topk"):
        there = torch._C._dispatch_has_kernel_for_dispatch_key(f"m3el_fast::{op}", "CUDA")
        assert there == (not native.cuda_missing)


def test_info_names_versions_and_devices(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    info.main([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"m3el_fast {m3el_fast.__version__}, Python {platform.python_version()}")
    assert f"torch: {torch.__version__}" in lines
    assert "CUDA devices: none visible" in lines
    card = SimpleNamespace(name="H100", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "H100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: card)
    info.main([])
    lines = capsys.readouterr().out.splitlines()
    assert "CUDA device 1: H100, compute capability 9.0, 132 multiprocessors, 80 GiB" in lines
    assert "CUDA devices: none visible" not in lines


@pytest.mark.parametrize(
    ("missing", "gpus", "expected"),
    [
        ("", False, {"native": "", "triton": "no CUDA device", "cuda": "no CUDA device"}),
        ("", True, {"native": "", "triton": "", "cuda": ""}),
        ("why\nand more", True, {"native": "why", "triton": "why", "cuda": "why"}),
    ],
    ids=["no-gpu", "all", "none"],
)
def test_info_says_which_backends_run_or_why_not(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    missing: str,
    gpus: bool,
    expected: dict[str, str],
) -> None:
    for backend in (native_backend, gpu, cuda):
        monkeypatch.setattr(backend, "MISSING", missing)
    monkeypatch.setattr(gpu, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    assert info.backends() == {"reference": ""} | expected
    info.main([])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("backend ")]
    said = [f"backend {n}: {f'not available: {why}' if why else 'available'}" for n, why in info.backends().items()]
    assert lines == said


def test_interpreted_kernels_need_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "MISSING", "")
    monkeypatch.setattr(gpu, "INTERPRETED", True)
    assert info.backends()["triton"] == ""


def test_info_names_the_triton_kernels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "MISSING", "triton is not installed: pip install triton")
    info.main([])
    assert "triton kernels: not there (triton is not installed: pip install triton)" in capsys.readouterr().out
    pytest.importorskip("triton")
    monkeypatch.setattr(gpu, "MISSING", "")
    info.main([])
    assert "triton kernels: triton" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("codes", "runs", "does_not_run"),
    [
        ([("80", "", "")], [(8, 0), (8, 6), (8, 9)], [(9, 0), (10, 0)]),
        ([("86", "", "")], [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ([("80", "", "+PTX")], [(8, 0), (8, 9), (9, 0), (12, 0)], []),
        ([("90", "a", "+PTX")], [(9, 0)], [(8, 0), (10, 0)]),
        ([("100", "f", "+PTX")], [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
        ([("80", "", ""), ("90", "", "+PTX")], [(8, 6), (9, 0), (12, 1)], []),
        ([], [], [(9, 0)]),
    ],
)
def test_which_gpus_run_what_was_compiled(
    codes: list[tuple[str, str, str]],
    runs: list[tuple[int, int]],
    does_not_run: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda, "_CODES", codes)
    monkeypatch.setattr(cuda, "_BUILT", "nvcc 13.0, sm_80")
    tensor: Any = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0))
    for capability in runs + does_not_run:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        expected = None
        if capability in does_not_run:
            which = "{}.{}".format(*capability)
            built = "the kernels were built for other GPUs (nvcc 13.0, sm_80)"
            expected = f"{built} than this one of compute capability {which}"
        assert cuda.not_on_device(tensor) == expected


@pytest.mark.parametrize(
    ("built", "driver", "words"),
    [
        ("nvcc 13.0, sm_90", 13000, ""),
        ("nvcc 13.2, sm_90", 13000, ""),  # minor versions run each other's code
        ("nvcc 12.4, sm_90", 13010, ""),
        ("nvcc 13.0, sm_90", 0, ""),  # no driver: nothing is on a GPU
        ("", 12080, ""),
        ("nvcc 13.0, sm_90", 12080, r"a driver for CUDA 13 \(nvcc 13.0, sm_90\), this one is for 12\.8: update it"),
    ],
)
def test_driver_is_no_older_than_the_kernels(built: str, driver: int, words: str) -> None:
    found = driver_obstacle(built, driver)
    assert bool(found) == bool(words)
    assert re.search(words, found)


def test_gpus_with_little_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for capability in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        found[capability] = cuda.little_shared_memory(torch.device("cuda", 0))
    assert [capability for capability, little in found.items() if little] == [(8, 6), (8, 9), (12, 0)]
    assert not cuda.little_shared_memory(torch.device("cpu"))
