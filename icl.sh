#!/usr/bin/env bash
# Zero-shot and in-context learning.
#
#   MODEL=facebook/opt-13b TASK=SST2 bash icl.sh                    32 demonstrations per evaluation sample
#   MODEL=facebook/opt-13b TASK=SST2 bash icl.sh --num_train 0      zero-shot
#
# Environment: TASK (required), MODEL (facebook/opt-13b), PYTHON (python), DRY_RUN=1 (print the command only).
# Several GPUs are all used: where the model fits each of them by N processes that share the samples, else by one that
#   is spread over them. LAYOUT=dataN or LAYOUT=spread chooses.
# Further arguments go to run.py and win over those below; see `python run.py --help`.
set -euo pipefail

if [[ -z "${TASK:-}" ]]; then
    echo "icl.sh: error: TASK is not set; for example: TASK=SST2 bash icl.sh" >&2
    exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

MODEL=${MODEL:-facebook/opt-13b}
PYTHON=${PYTHON:-python}
LAYOUT=${LAYOUT:-$(nvidia-smi --list-gpus >/dev/null 2>&1 && "$PYTHON" "$root/run.py" layout "$MODEL" || echo spread)}
launcher=("$PYTHON")
case "$LAYOUT" in
    spread) ;;
    data[1-9]*) launcher+=(-m torch.distributed.run --standalone --nproc_per_node "${LAYOUT#data}") ;;
    *)
        echo "icl.sh: error: LAYOUT is spread or data and a number, not '$LAYOUT'" >&2
        exit 2
        ;;
esac

command=(
    "${launcher[@]}" "$root/run.py"
    --model_name "$MODEL"
    --task_name "$TASK"
    --output_dir result/tmp
    --tag icl
    --num_train 32
    --num_eval 1000
    --load_float16
    --verbose
    "$@"
)
printf '%q ' "${command[@]}"
echo
[[ "${DRY_RUN:-0}" == 1 ]] || exec "${command[@]}"
