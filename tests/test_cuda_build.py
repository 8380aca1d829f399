"""csrc/cuda_build.py and what csrc/native_build.py makes of it, with scripts in place of nvcc and nvidia-smi."""

from __future__ import annotations

import importlib.machinery
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cuda_build
from native_build import package_folders

ROOT = Path(__file__).parents[1]
COMPILES = """
while [ $# -gt 1 ]; do case "$1" in -c) in=$2;; -o) out=$2;; esac; shift; done
exec c++ -fPIC -x c++ -c "$in" -o "$out"
"""
FAILS = "echo 'kernel.cu(3): error: planted' >&2; exit 2"


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def toolkit(root: Path, release: str = "13.0", gpus: str = "80 90 100", compile: str = FAILS) -> Path:
    """A folder like a toolkit's; returns its nvcc, which does ``compile`` with all but questions."""
    (root / "lib64").mkdir(parents=True)
    (root / "lib64/libcudart_static.a").write_bytes(b"!<arch>\n")
    return script(
        root / "bin/nvcc",
        f"""case "$*" in
        --version) echo 'Cuda compilation tools, release {release}, V{release}.88'; exit;;
        *--dryrun*) echo '#$ TOP={root}/bin/..' >&2; exit;;
        --list-gpu-code) for gpu in {gpus}; do echo sm_$gpu; done; exit;;
        esac
        {compile}""",
    )


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No toolkit, no GPU, nothing asked for."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(cuda_build, "USUAL", Path("/nonexistent"))
    for name in ("CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "M3EL_BUILD_CUDA", "M3EL_REQUIRE_NATIVE"):
        monkeypatch.delenv(name, raising=False)


def test_no_nvcc_says_what_to_install() -> None:
    with pytest.raises(cuda_build.CudaMissing) as caught:
        cuda_build.find_toolkit([])
    assert str(caught.value).startswith("no nvcc 12.4 or newer (none in CUDA_HOME, on the path, in /nonexistent or")
    assert "cuda-toolkit[nvcc" in str(caught.value)


def test_order_of_toolkits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = "home", "path", "usual", "packages/nvidia/cu13"
    home, path, usual, packages = (toolkit(tmp_path / name) for name in names)
    older = toolkit(tmp_path / "packages/nvidia/cu12", "12.8")
    assert cuda_build.find_toolkit([tmp_path / "packages"]).nvcc == packages != older
    monkeypatch.setattr(cuda_build, "USUAL", tmp_path / "usual")
    assert cuda_build.find_toolkit([tmp_path / "packages"]).nvcc == usual
    monkeypatch.setenv("PATH", str(path.parent))
    assert cuda_build.find_toolkit([tmp_path / "packages"]).nvcc == path
    monkeypatch.setenv("CUDA_HOME", str(home.parents[1]))
    found = cuda_build.find_toolkit([tmp_path / "packages"])
    assert found == (home, (13, 0), tmp_path / "home/lib64")


def test_toolkit_that_is_too_old_or_incomplete_is_passed_over_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "old"))
    monkeypatch.setenv("PATH", str(tmp_path / "bare/bin"))
    old = toolkit(tmp_path / "old", "12.3")
    bare = toolkit(tmp_path / "bare")
    (tmp_path / "bare/lib64/libcudart_static.a").unlink()
    dead = script(tmp_path / "dead/nvidia/cu13/bin/nvcc", "exit 1")
    with pytest.raises(cuda_build.CudaMissing) as caught:
        cuda_build.find_toolkit([tmp_path / "dead"])
    for named in (f"{old} is 12.3; ", f"{bare} has no libcudart_static.a in {tmp_path}", f"{dead} does not run"):
        assert named in str(caught.value)
    new = toolkit(tmp_path / "new/nvidia/cu13")
    assert cuda_build.find_toolkit([tmp_path / "dead", tmp_path / "new"]).nvcc == new


def test_wrapper_leads_to_the_toolkit_that_it_starts(tmp_path: Path) -> None:
    real = toolkit(tmp_path / "cuda-13.0")
    wrapper = script(tmp_path / "bin/nvcc", f'exec {real} "$@"')
    assert cuda_build.inspect(wrapper).libraries == tmp_path / "cuda-13.0/lib64"


def test_libraries_are_where_nvcc_looks_for_them(tmp_path: Path) -> None:
    elsewhere = tmp_path / "with space"
    elsewhere.mkdir()
    (elsewhere / "libcudart_static.a").write_bytes(b"!<arch>\n")
    nvcc = script(tmp_path / "nvcc", f'echo release 12.4; echo \'#$ LIBRARIES=  "-L/stubs" "-L{elsewhere}"\'')
    assert cuda_build.inspect(nvcc) == (nvcc, (12, 4), elsewhere)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("8.0;9.0+PTX", "sm_80 sm_90 compute_90"),
        ("8.0 9.0a", "sm_80 sm_90a"),
        ("7.5 8.6 12.0+PTX", "sm_86 sm_120 compute_120"),  # such as container images set: the kernels start at 8.0
        (" 10.0f+PTX; ", "sm_100f compute_100f"),
    ],
)
def test_arch_list_is_torchs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str, expected: str) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", given)
    assert " ".join(cuda_build.targets(cuda_build.inspect(toolkit(tmp_path)))) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [("Hopper", "got 'Hopper'"), ("9.0;sm_90", "got 'sm_90'"), ("7.0 7.5", "compute capability 8.0 and newer")],
)
def test_arch_list_without_use_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str, words: str
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", given)
    with pytest.raises(cuda_build.CudaMissing, match="TORCH_CUDA_ARCH_LIST") as caught:
        cuda_build.targets(cuda_build.inspect(toolkit(tmp_path)))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("driver", "known", "expected"),
    [
        ("exit 9", "75 80 90 100 120", "sm_80 sm_90 sm_100 compute_100"),
        ("exit 9", "80 90", "sm_80 sm_90 compute_90"),  # nvcc 12.4
        ("echo 9.0; echo 9.0", "80 90 100", "sm_90 compute_90"),
        ("echo 12.0; echo 8.6", "80 86 90 120", "sm_86 sm_120 compute_120"),
        ("echo 12.0", "80 90", "sm_90 compute_90"),  # newer than nvcc: from PTX
        ("echo 7.5", "75 80 90 100", "sm_80 sm_90 sm_100 compute_100"),
        ("echo Failed to initialize NVML: 9.0", "80 90 100", "sm_80 sm_90 sm_100 compute_100"),
    ],
)
def test_visible_gpus_else_the_common_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, driver: str, known: str, expected: str
) -> None:
    script(tmp_path / "smi/nvidia-smi", driver)
    monkeypatch.setenv("PATH", str(tmp_path / "smi"))
    assert " ".join(cuda_build.targets(cuda_build.inspect(toolkit(tmp_path / "cuda", gpus=known)))) == expected


def test_description_and_command(tmp_path: Path) -> None:
    found = cuda_build.inspect(toolkit(tmp_path))
    codes = ["sm_80", "sm_90a", "sm_100", "compute_100"]
    assert cuda_build.describe(found, codes) == "nvcc 13.0, sm_80 sm_90a sm_100+PTX"
    command = cuda_build.compile_command(found, codes, ["g++-12"])
    assert "-gencode=arch=compute_90a,code=sm_90a" in command
    assert "-gencode=arch=compute_100,code=compute_100" in command
    assert command[1:3] == ["-ccbin", "g++-12"]
    assert "-ccbin" not in cuda_build.compile_command(found, codes, ["ccache", "g++"])


# ----------------------------------------------------------------------------------------------------------------------
# Whole builds, of a checkout with next to nothing to compile


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    if not shutil.which("c++", path=os.defpath):
        pytest.skip("no c++ in /bin or /usr/bin")
    root = tmp_path / "checkout"
    (root / "csrc/cuda").mkdir(parents=True)
    (root / "m3el_fast").mkdir()
    for name in ("csrc/native_build.py", "csrc/cuda_build.py", "setup.py"):
        shutil.copy(ROOT / name, root / name)
    project = '[project]\nname = "m3el_fast"\nversion = "0"\n[tool.setuptools]\npackages = []\n'
    (root / "pyproject.toml").write_text(project)
    (root / "csrc/native.cpp").write_text("int native() { return 1; }")
    (root / "csrc/build_info.cpp").write_text("const char* built_for() { return M3EL_CUDA; }")
    (root / "csrc/cuda/scale.cu").write_text('extern const char scale[] = "the kernel";')
    (root / "csrc/cuda/scale_ops.cpp").write_text('extern const char ops[] = "the op";')
    return root


def build(checkout: Path, nvcc: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    home = {"CUDA_HOME": str(nvcc.parents[1]), "TORCH_CUDA_ARCH_LIST": "9.0+PTX", "PATH": os.defpath}
    settings = {**os.environ, **home, **env}
    return subprocess.run(command, cwd=checkout, env=settings, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def built(checkout: Path, name: str = "_native") -> bytes:
    path = checkout / f"m3el_fast/{name}{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    return path.read_bytes() if path.exists() else b""


def note(checkout: Path) -> str:
    path = checkout / "m3el_fast/_cuda_missing.txt"
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("given", ["", "1"])
def test_both_parts_go_into_one_library(checkout: Path, tmp_path: Path, given: str) -> None:
    (checkout / "m3el_fast/_cuda_missing.txt").write_text("from an earlier build")
    done = build(checkout, toolkit(tmp_path / "cuda", compile=COMPILES), M3EL_BUILD_CUDA=given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert b"the kernel" in built(checkout)
    assert b"the op" in built(checkout)
    assert b"nvcc 13.0, sm_90+PTX" in built(checkout, "_build_info")
    assert not note(checkout)
    assert "NOT BUILT" not in done.stderr


@pytest.mark.parametrize(
    ("compile", "env", "reason"),
    [
        (FAILS, {}, "kernel.cu(3): error: planted"),
        (COMPILES, {"M3EL_BUILD_CUDA": "0"}, "M3EL_BUILD_CUDA=0"),
        (COMPILES, {"TORCH_CUDA_ARCH_LIST": "7.5"}, "TORCH_CUDA_ARCH_LIST=7.5"),
    ],
    ids=["failing", "forbidden", "no-gpu-to-build-for"],
)
def test_cpu_part_alone_and_the_reason(
    checkout: Path, tmp_path: Path, compile: str, env: dict[str, str], reason: str
) -> None:
    done = build(checkout, toolkit(tmp_path / "cuda", compile=compile), M3EL_REQUIRE_NATIVE="1", **env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert built(checkout)
    assert b"the kernel" not in built(checkout)
    assert b"the op" not in built(checkout)
    assert b"nvcc" not in built(checkout, "_build_info")
    assert reason in note(checkout).splitlines()[0]
    assert "CUDA KERNELS NOT BUILT" in done.stderr
    assert reason in done.stderr


@pytest.mark.parametrize(
    ("compile", "env", "reason"),
    [
        (FAILS, {}, "kernel.cu(3): error: planted"),
        (COMPILES, {"TORCH_CUDA_ARCH_LIST": "7.5"}, "TORCH_CUDA_ARCH_LIST=7.5"),
        (COMPILES, {"CXX": "/nonexistent"}, "/nonexistent not found"),
    ],
    ids=["failing", "no-gpu-to-build-for", "no-compiler"],
)
def test_cuda_asked_for_and_not_built_is_an_error(
    checkout: Path, tmp_path: Path, compile: str, env: dict[str, str], reason: str
) -> None:
    done = build(checkout, toolkit(tmp_path / "cuda", compile=compile), M3EL_BUILD_CUDA="1", **env)
    assert done.returncode != 0
    assert "M3EL_BUILD_CUDA=1" in done.stderr
    assert reason in done.stderr
    assert not built(checkout)


def test_other_values_are_refused_by_name(checkout: Path, tmp_path: Path) -> None:
    done = build(checkout, toolkit(tmp_path / "cuda"), M3EL_BUILD_CUDA="yes")
    assert done.returncode != 0
    assert "M3EL_BUILD_CUDA: expected 0, 1 or nothing, got 'yes'" in done.stderr


def test_real_nvcc_is_found_with_its_runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    try:
        found = cuda_build.find_toolkit(package_folders())
    except cuda_build.CudaMissing as missing:
        pytest.skip(str(missing))
    (tmp_path / "kernel.cu").write_text("__global__ void kernel() {}")
    command = [*cuda_build.compile_command(found, ["sm_90"], ["c++"]), "-c", "kernel.cu", "-o", "kernel.o"]
    subprocess.run(command, cwd=tmp_path, check=True)
    link = ["c++", "-shared", "kernel.o", "-o", "it.so", "-Wl,-z,defs", *cuda_build.link_flags(found)]
    subprocess.run(link, cwd=tmp_path, check=True)
    exported = subprocess.run(["nm", "-D", "--defined-only", "it.so"], cwd=tmp_path, capture_output=True, check=True)
    assert b" cudaLaunchKernel" not in exported.stdout  # which torch's own runtime also has
