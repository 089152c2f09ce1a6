#!/usr/bin/env bash
# Everything that is to be known of a GPU, within 9 minutes and unattended; README.md says what and how to read it.
#
#     bash experiments/gpu/run.sh                 # results go to experiments/gpu/results, or to $OUT
#
# Each step is a process of its own with a time limit, and writes OUT/STEP.json after every number; a step that fails,
# hangs or lacks a package does not keep the next ones from running. OUT/summary.json says what became of each.
#
# OUT                   folder of the results
# PYTHON                interpreter, 3.11 or newer, with torch; default .venv/bin/python of the checkout, else python3
# LOWNAS_GPU_WHEELS     folder of wheels to install for this run alone, into a temporary folder
# LOWNAS_GPU_STEPS      "STEP:SECONDS ..." in the place of the steps below
# LOWNAS_GPU_TOTAL_S    seconds for all of it
# LOWNAS_GPU_STANDIN    cpu: rehearses all steps on a CPU, with small networks
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=$(cd "$here/../.." && pwd -P)
total_s=${LOWNAS_GPU_TOTAL_S:-540}
reserve_s=15 # of it: a step that does not end when told to is killed 10 s later, and the summary is written
least_s=3    # with less time left no step begins
kill_after_s=10
# Cheap and important ones first. Their limits add up to more than the total: few need theirs.
steps=${LOWNAS_GPU_STEPS:-doctor:60 presets:90 calibration:150 held_out:70 proxy:90 final:100 workers:100 compile:150}

python=${PYTHON:-}
if [[ -z $python ]]; then
    python=$root/.venv/bin/python
    [[ -x $python ]] || python=python3
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "$python is not there, or older than Python 3.11: name another one with PYTHON=..." >&2
    exit 2
fi

OUT=${OUT:-$here/results}
if ! mkdir -p "$OUT" || ! OUT=$(cd "$OUT" && pwd -P); then
    echo "cannot write to $OUT: name another folder with OUT=..." >&2
    exit 2
fi

work=$(mktemp -d) || exit 2
child=
end() {
    if [[ -n $child ]]; then
        kill "$child" 2>/dev/null && wait "$child" 2>/dev/null
    fi
    rm -rf "$work"
}
trap end EXIT
trap 'exit 130' INT TERM HUP

# The checkout itself is the package lownas, whatever its folder is called.
mkdir "$work/path" "$work/site"
ln -s "$root" "$work/path/lownas"
if [[ -n ${LOWNAS_GPU_WHEELS:-} ]]; then
    wheels=$(cd "$LOWNAS_GPU_WHEELS" && pwd -P) || exit 2
    timeout 60 "$python" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$wheels"/*.whl ||
        echo "wheels: not all of those in $wheels could be installed" >&2
fi
export PYTHONPATH=$work/path:$work/site${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1 PYTHONDONTWRITEBYTECODE=1
export TORCHINDUCTOR_CACHE_DIR=$work/inductor TRITON_CACHE_DIR=$work/triton # nothing is compiled beforehand
if [[ -n ${LOWNAS_GPU_STANDIN:-} ]]; then
    mkdir "$work/tmp" # where measurements, which a rehearsal does not make, keep theirs
    export TMPDIR=$work/tmp CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fi
export OUT LOWNAS_GPU_BEGAN=$EPOCHSECONDS
cd "$work" || exit 2

for entry in $steps; do
    rm -f "$OUT/${entry%%:*}.json"
done
rm -f "$OUT/summary.json" "$OUT/log.txt"

summarize() {
    timeout 20 "$python" -m lownas.experiments.gpu.steps --summary "$work/outcomes" "$@"
}

for entry in $steps; do
    step=${entry%%:*} limit=${entry##*:}
    left=$((total_s - reserve_s - SECONDS))
    if ((left < least_s)); then
        printf '%s\t%s\t%s\t%s\n' "$step" none 0 "$limit" >>"$work/outcomes"
        continue
    fi
    ((limit > left)) && limit=$left
    began=$SECONDS
    : >"$work/log"
    LOWNAS_GPU_STEP_ENDS=$((EPOCHSECONDS + limit)) timeout -k "$kill_after_s" "$limit" \
        "$python" -m lownas.experiments.gpu.steps "$step" 2>"$work/log" &
    child=$!
    wait "$child"
    code=$?
    child=
    { echo "=== $step"; cat "$work/log"; } >>"$OUT/log.txt"
    last=$(grep -v '^[[:space:]]*$' "$work/log" | tail -n 1 | tr '\t' ' ' | cut -c 1-300)
    printf '%s\t%s\t%s\t%s\t%s\n' "$step" "$code" "$((SECONDS - began))" "$limit" "$last" >>"$work/outcomes"
    summarize >/dev/null # after every step: whatever ends this script, what was found stands there
done
summarize
