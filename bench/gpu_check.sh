#!/usr/bin/env bash
# Everything there is to check on a GPU, from a plain checkout: needs Python with what $needed below names. What a machine
# without a network lacks is looked for in .gpu-site, made elsewhere for its version of Python:
#   pip install --target .gpu-site --python-version 3.12 --only-binary=:all: pydantic
#   bench/gpu_check.sh                  all GPU tests, then the table of times against eager PyTorch and torch.compile
#   bench/gpu_check.sh tests            only the tests
#   bench/gpu_check.sh table [PART...]  only the table, or parts of it (bench/gpu_parts.py)
# The table goes to $OUT, or to bench/results/. A step that fails does not keep the next from running; the exit status
# says whether all went well. A goal that is missed is reported and fails nothing.
set -uo pipefail
exec </dev/null

cd "$(dirname "$0")/.." || exit 2
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}:$PWD/.gpu-site PYTHONUNBUFFERED=1
unset TRITON_INTERPRET
if ! python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "no CUDA device: python -m bench.gpu_table --scale tiny, with TRITON_INTERPRET=1, checks the code without one" >&2
    exit 2
fi
needed="triton transformers pytest accelerate pydantic yaml tqdm PIL"
if ! python3 -c 'import sys, importlib.util as u; sys.exit(" ".join(n for n in sys.argv[1:] if not u.find_spec(n)))' \
    $needed; then
    echo "the Python packages named above are missing; bench/gpu_check.sh says how to bring them" >&2
    exit 2
fi

what=${1:-all}
shift || true
status=0
step() {
    printf '\n== %s (%d s)\n' "$*" "$SECONDS"
    "$@" || { status=1; printf '== FAILED: %s\n' "$*"; }
}

if [[ $what != table ]]; then
    step python3 -m pytest -p no:cacheprovider tests/kernels -m "not slow"
    mapfile -t marked < <(grep -rl --include='*.py' 'pytest.mark.gpu' tests)
    step python3 -m pytest -p no:cacheprovider "${marked[@]}" -m gpu
fi
if [[ $what != tests ]]; then
    step python3 -m bench.gpu_table --scale paper --out "${OUT:-bench/results}" ${1:+--parts "$@"}
fi
printf '\n== %s (%d s)\n' "$([[ $status == 0 ]] && echo "all went well" || echo "something FAILED, see above")" "$SECONDS"
exit "$status"
