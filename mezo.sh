#!/usr/bin/env bash
# Fine-tuning with MeZO: forward passes only.
#
#   MODEL=facebook/opt-13b TASK=SST2 MODE=ft     LR=1e-7 EPS=1e-3 bash mezo.sh
#   MODEL=facebook/opt-13b TASK=SST2 MODE=prefix LR=1e-3 EPS=1e-1 bash mezo.sh
#   MODEL=facebook/opt-13b TASK=SST2 MODE=lora   LR=5e-5 EPS=1e-2 bash mezo.sh
#
# On the task's own metric instead of a loss (SQuAD's F1):
#   MODEL=facebook/opt-13b TASK=SQuAD MODE=prefix LR=1e-2 EPS=1e-1 bash mezo.sh \
#       --non_diff --evaluation_strategy no --save_strategy no --save_model
#
# Environment (defaults): TASK (required), MODEL (facebook/opt-1.3b), MODE (ft; or prefix, lora), LR (1e-5),
#   EPS (1e-3), BS (16, examples per step), STEPS (20000), EVAL_STEPS (4000), SEED (0), TRAIN/DEV/EVAL samples
#   (1000/500/1000), PYTHON (python), DRY_RUN=1 (print the command only).
# Several GPUs are all used: where the model fits each of them by N processes that share a step's BS examples, else by
#   one that is spread over them. LAYOUT=dataN or LAYOUT=spread chooses.
# SEED draws the train set and seeds the run itself: noise, batch order, new parameters.
# Further arguments go to run.py and win over those below; see `python run.py --help`.
set -euo pipefail

fail() {
    echo "mezo.sh: error: $1" >&2
    exit 2
}

[[ -n "${TASK:-}" ]] || fail "TASK is not set; for example: TASK=SST2 bash mezo.sh"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

MODEL=${MODEL:-facebook/opt-1.3b}
MODE=${MODE:-ft}
LR=${LR:-1e-5}
EPS=${EPS:-1e-3}
BS=${BS:-16}
STEPS=${STEPS:-20000}
EVAL_STEPS=${EVAL_STEPS:-4000}
SEED=${SEED:-0}

# CB, Copa and WSC have fewer than 1,000 training rows (250, 400 and 554): 500 for development would leave few.
case "${TASK%%__*}" in
    CB | Copa | WSC) DEV=${DEV:-100} ;;
    *) DEV=${DEV:-500} ;;
esac

PYTHON=${PYTHON:-python}
LAYOUT=${LAYOUT:-$(nvidia-smi --list-gpus >/dev/null 2>&1 && "$PYTHON" "$root/run.py" layout "$MODEL" --batch "$BS" || echo spread)}
launcher=("$PYTHON")
processes=1
case "$LAYOUT" in
    spread) ;;
    data[1-9]*)
        processes=${LAYOUT#data}
        ((BS % processes == 0)) || fail "$processes processes cannot share BS=$BS examples evenly"
        launcher+=(-m torch.distributed.run --standalone --nproc_per_node "$processes")
        ;;
    *) fail "LAYOUT is spread or data and a number, not '$LAYOUT'" ;;
esac

TAG=${TAG:-mezo-$MODE-$STEPS-$BS-$LR-$EPS-$SEED}

command=(
    "${launcher[@]}" "$root/run.py"
    --model_name "$MODEL"
    --task_name "$TASK"
    --output_dir "result/$TASK-$(basename -- "$MODEL")-$TAG"
    --tag "$TAG"
    --train_set_seed "$SEED"
    --seed "$SEED"
    --num_train "${TRAIN:-1000}"
    --num_dev "$DEV"
    --num_eval "${EVAL:-1000}"
    --trainer zo
    --load_float16
    --learning_rate "$LR"
    --zo_eps "$EPS"
    --lr_scheduler_type constant
    --per_device_train_batch_size "$((BS / processes))"
    --max_steps "$STEPS"
    --logging_steps 10
    --eval_strategy steps
    --eval_steps "$EVAL_STEPS"
    --save_strategy steps
    --save_steps "$EVAL_STEPS"
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
