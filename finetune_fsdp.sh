#!/usr/bin/env bash
# Fine-tuning by backpropagation on several GPUs, weights, gradients and Adam's moments sharded over them (FSDP2).
#
#   MODEL=facebook/opt-13b TASK=SST2 MODE=ft LR=1e-5 NUM_GPU=4 bash finetune_fsdp.sh
#
# Environment (defaults): NUM_GPU (all that nvidia-smi lists), TASK (required), MODEL (facebook/opt-1.3b), MODE (ft; or
#   prefix, lora), LR (1e-5), BS (8, per GPU: one sample at a time, accumulated), EPOCH (5), SEED (0), TRAIN/DEV/EVAL
#   samples (1000/500/1000), PYTHON (python), DRY_RUN=1 (print the command only).
# SEED draws the train set and seeds the run itself: batch order, dropout, new parameters.
# Every decoder layer is a shard of its own, whatever the model's family calls it.
# Further arguments go to run.py and win over those below; see `python run.py --help`.
set -euo pipefail

fail() {
    echo "finetune_fsdp.sh: error: $1" >&2
    exit 2
}

[[ -n "${TASK:-}" ]] || fail "TASK is not set; for example: TASK=SST2 bash finetune_fsdp.sh"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

MODEL=${MODEL:-facebook/opt-1.3b}
MODE=${MODE:-ft}
LR=${LR:-1e-5}
BS=${BS:-8}
EPOCH=${EPOCH:-5}
SEED=${SEED:-0}
NUM_GPU=${NUM_GPU:-$({ nvidia-smi --list-gpus 2>/dev/null || true; } | grep -c '^GPU' || true)}
[[ "$NUM_GPU" =~ ^[1-9][0-9]*$ ]] || fail "NUM_GPU is not set and nvidia-smi lists no GPU; for example: NUM_GPU=2"

# CB, Copa and WSC have fewer than 1,000 training rows (250, 400 and 554): 500 for development would leave few.
case "${TASK%%__*}" in
    CB | Copa | WSC) DEV=${DEV:-100} ;;
    *) DEV=${DEV:-500} ;;
esac

TAG=${TAG:-fsdp-$MODE-$EPOCH-$BS-$LR-$SEED}

# This module is what the command torchrun runs; --standalone finds a free port.
command=(
    "${PYTHON:-python}" -m torch.distributed.run --standalone --nproc_per_node "$NUM_GPU" "$root/run.py"
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
    --no_auto_device
    --fsdp
    --fsdp_config '{"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "reshard_after_forward": true}'
    --fp16
    --learning_rate "$LR"
    --per_device_train_batch_size 1
    --gradient_accumulation_steps "$BS"
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
