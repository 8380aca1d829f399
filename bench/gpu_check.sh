#!/usr/bin/env bash
# Everything there is to check on a GPU, from a plain checkout: needs Python with what $needed below names. What a machine
# without a network lacks is looked for in .gpu-site, made elsewhere for its version of Python:
#   pip install --target .gpu-site --python-version 3.12 --only-binary=:all: pydantic pytest-benchmark
# First builds the native extension with its CUDA kernels in place, which needs nvcc, a C++ compiler, Python.h, setuptools,
# ninja and pybind11 (the latter three from .gpu-site, too); where it cannot, it says so, and the rest goes on without.
#   bench/gpu_check.sh                  all GPU tests, then the benchmarks: times against eager PyTorch, torch.compile
#   bench/gpu_check.sh tests            only the tests
#   bench/gpu_check.sh triton|cuda|gpu  only those of the Triton kernels, of the CUDA kernels, or those that need a GPU
#   bench/gpu_check.sh sanitizer        only those that run compute-sanitizer, up to 500 s each
#   bench/gpu_check.sh table [PART...]  only the benchmarks (bench/test_gpu_PART.py), or some parts of them
# Each part's results file goes to $OUT, or to bench/results/, when the part has ended: one lease may measure some parts,
# another the others. A step that fails does not keep the next from running; the exit status says whether all went well.
# A goal that is missed is reported and fails nothing.
set -uo pipefail
exec </dev/null

cd "$(dirname "$0")/.." || exit 2
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}:$PWD/.gpu-site PATH=$PATH:$PWD/.gpu-site/bin PYTHONUNBUFFERED=1
unset TRITON_INTERPRET
if ! python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "no CUDA device: TRITON_INTERPRET=1 pytest bench/test_gpu_*.py checks the code without one, untimed" >&2
    exit 2
fi
needed="triton transformers pytest pytest_benchmark cpuinfo accelerate pydantic yaml tqdm PIL"
present() {
    python3 - "$@" <<<'import sys, importlib.util as u; sys.exit(" ".join(n for n in sys.argv[1:] if not u.find_spec(n)) or 0)'
}
if ! present $needed; then
    echo "the Python packages named above are missing; bench/gpu_check.sh says how to bring them" >&2
    exit 2
fi

what=${1:-all}
shift || true
if [[ " all tests triton cuda gpu sanitizer table " != *" $what "* ]]; then
    echo "expected tests, triton, cuda, gpu, sanitizer or table, got $what" >&2
    exit 2
fi
parts=("$@")
known=(bench/test_gpu_*.py)
known=("${known[@]#bench/test_gpu_}")
known=("${known[@]%.py}")
for part in "${parts[@]}"; do
    if [[ $what != table || " ${known[*]} " != *" $part "* ]]; then
        echo "expected parts of the table, of ${known[*]}, got $part" >&2
        exit 2
    fi
done
status=0
step() {
    printf '\n== %s (%d s)\n' "$*" "$SECONDS"
    "$@" || { status=1; printf '== FAILED: %s\n' "$*"; }
}

build() {
    local log
    if ! present setuptools ninja pybind11; then
        echo "the native extension cannot be built without the packages named above" >&2
        return 1
    fi
    if ! python3 -c 'import setuptools, sys; sys.exit(int(setuptools.__version__.split(".")[0]) < 77)'; then
        echo "the native extension needs setuptools 77 or newer, in .gpu-site for example" >&2
        return 1
    fi
    log=$(M3EL_BUILD_CUDA=1 python3 setup.py build_ext --inplace 2>&1) || { tail -n 60 <<<"$log"; return 1; }
    python3 -c 'import sys; from m3el_fast.info import backends; sys.exit(backends()["cuda"] or 0)'
}
step build
step python3 -m m3el_fast.info

asked() { [[ " all $* " == *" $what "* ]]; }
tests() { step python3 -m pytest -p no:cacheprovider "$@"; }
mapfile -t marked < <(grep -rl --include='*.py' 'pytest.mark.gpu' tests)
asked tests triton && tests tests/kernels -m "not slow and not gpu"
asked tests cuda && tests tests/cuda -m "not slow and not gpu"
asked tests gpu && tests "${marked[@]}" -m gpu -k "not sanitizer"
asked tests sanitizer && tests "${marked[@]}" -m gpu -k sanitizer
if asked table; then
    export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF-expandable_segments:True}
    out=${OUT:-bench/results}
    mkdir -p "$out"
    gpu=$(python3 -c 'import re, torch; print(re.sub("[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()))')
    for part in "${parts[@]:-${known[@]}}"; do
        tests -rs "bench/test_gpu_$part.py" --benchmark --scale paper \
            --benchmark-json="$out/gpu-$(date +%F)-$gpu-$part.json"
    done
fi
printf '\n== %s (%d s)\n' "$([[ $status == 0 ]] && echo "all went well" || echo "something FAILED, see above")" "$SECONDS"
exit "$status"
