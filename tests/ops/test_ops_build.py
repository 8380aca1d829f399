"""The report on the native part: what is there when it is, and the reason when it is not."""

from __future__ import annotations

import os
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from m3el_fast import info
from m3el_fast.ops import build, gpu
from m3el_fast.ops.build import NativeReport, native_report


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


def test_info_names_the_triton_kernels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "MISSING", "triton is not installed: pip install triton")
    info.main([])
    assert "triton kernels: not there (triton is not installed: pip install triton)" in capsys.readouterr().out
    pytest.importorskip("triton")
    monkeypatch.setattr(gpu, "MISSING", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    info.main([])
    assert capsys.readouterr().out.endswith(", GPU 0, GPU 1\n")
