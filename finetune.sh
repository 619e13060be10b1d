#!/usr/bin/env bash
# Fine-tuning by backpropagation, to compare MeZO with.
#
#   MODEL=facebook/opt-1.3b TASK=SST2 MODE=ft   LR=1e-5 bash finetune.sh
#   MODEL=facebook/opt-1.3b TASK=SST2 MODE=lora LR=1e-4 bash finetune.sh
#
# Environment (defaults): TASK (required), MODEL (facebook/opt-1.3b), MODE (ft; or prefix, lora), LR (1e-5), BS (8),
#   EPOCH (5), SEED (0), TRAIN/DEV/EVAL samples (1000/500/1000), PYTHON (python), DRY_RUN=1 (print the command only).
# SEED draws the train set and seeds the run itself: batch order, dropout, new parameters.
# Weights are float32, computed with in float16 on a GPU (--fp16) and in float32 on a CPU.
# Further arguments go to run.py and win over those below; see `python run.py --help`.
set -euo pipefail

fail() {
    echo "finetune.sh: error: $1" >&2
    exit 2
}

[[ -n "${TASK:-}" ]] || fail "TASK is not set; for example: TASK=SST2 bash finetune.sh"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

MODEL=${MODEL:-facebook/opt-1.3b}
MODE=${MODE:-ft}
LR=${LR:-1e-5}
BS=${BS:-8}
EPOCH=${EPOCH:-5}
SEED=${SEED:-0}

# CB, Copa and WSC have fewer than 1,000 training rows (250, 400 and 554): 500 for development would leave few.
case "${TASK%%__*}" in
    CB | Copa | WSC) DEV=${DEV:-100} ;;
    *) DEV=${DEV:-500} ;;
esac

# Long texts: fewer at a time, accumulated to BS.
case "${TASK%%__*}" in
    MultiRC | ReCoRD) at_a_time=2 ;;
    DROP) at_a_time=1 ;;
    *) at_a_time=$BS ;;
esac
((at_a_time <= BS)) || at_a_time=$BS
((BS % at_a_time == 0)) || fail "$TASK takes $at_a_time samples at a time: BS is a multiple of it, not $BS"

TAG=${TAG:-$MODE-$EPOCH-$BS-$LR-$SEED}

command=(
    "${PYTHON:-python}" "$root/run.py"
    --model_name "$MODEL"
    --task_name "$TASK"
    --output_dir "result/$TASK-$(basename -- "$MODEL")-$TAG"
    --tag "$TAG"
    --train_set_seed "$SEED"
    --seed "$SEED"
    --num_train "${TRAIN:-1000}"
    --num_dev "$DEV"
    --num_eval "${EVAL:-1000}"
    --trainer regular
    --fp16
    --learning_rate "$LR"
    --per_device_train_batch_size "$at_a_time"
    --gradient_accumulation_steps "$((BS / at_a_time))"
    --num_train_epochs "$EPOCH"
    --logging_steps 10
    --eval_strategy epoch
    --save_strategy epoch
    --save_total_limit 1
    --load_best_model_at_end
)

case "$MODE" in
    ft) ;;
    prefix) command+=(--prefix_tuning --num_prefix 5 --no_reparam --prefix_init_by_real_act) ;;
    lora) command+=(--lora) ;;
    *) fail "MODE is ft, prefix or lora, not '$MODE'" ;;
esac

# Copa and ReCoRD as published, and the tasks whose answers are generated, train on the right answer alone.
case "${TASK%%__*}" in
    Copa | ReCoRD | SQuAD | DROP) ;;
    *) command+=(--train_as_classification) ;;
esac

command+=("$@")
printf '%q ' "${command[@]}"
echo
[[ "${DRY_RUN:-0}" == 1 ]] || exec "${command[@]}"
