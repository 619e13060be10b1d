"""Arguments that scripts written for transformers 4 may still pass, and what becomes of each.

Three fates: RENAMED ones mean their new name; TRANSLATED ones set another argument; IGNORED ones are accepted with
a note, because the script still does what was meant; REMOVED ones are refused, with the mend.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "torchdynamo": "torch_compile_backend",
    "xpu_backend": "ddp_backend",
}


def _warmup(ratio: float) -> dict[str, Any]:
    if not 0 <= ratio < 1:
        raise ValueError(f"must lie in [0, 1), got {ratio:g}; for a number of steps use --warmup_steps")
    return {"warmup_steps": ratio}


# Old name -> (type, value -> the arguments it sets). fsdp_* ones set keys of fsdp_config.
TRANSLATED: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "warmup_ratio": ("float", _warmup),
    "adafactor": ("bool", lambda on: {"optim": "adafactor"} if on else {}),
    "group_by_length": ("bool", lambda on: {"train_sampling_strategy": "group_by_length"} if on else {}),
    "include_inputs_for_metrics": ("bool", lambda on: {"include_for_metrics": ["inputs"]} if on else {}),
    "fsdp_transformer_layer_cls_to_wrap": (
        "str",
        lambda names: {"fsdp_config": {"transformer_layer_cls_to_wrap": names.split(",")}},
    ),
    "fsdp_min_num_params": ("int", lambda count: {"fsdp_config": {"min_num_params": count}}),
}

IGNORED = {
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR for TensorBoard's folder",
    "save_safetensors": "checkpoints are always safetensors",
    "use_mps_device": "an Apple GPU is used where there is one; --use_cpu prevents it",
    "use_ipex": "transformers 5 has no IPEX path; PyTorch runs the model itself",
    "jit_mode_eval": "transformers 5 has no JIT evaluation; see --torch_compile",
    "half_precision_backend": "mixed precision is always PyTorch's own",
    "fp16_backend": "mixed precision is always PyTorch's own",
    "fp16_opt_level": "mixed precision is always PyTorch's own",
    "use_legacy_prediction_loop": "there is one prediction loop",
    "ray_scope": "hyperparameter search is not part of this program",
    "mp_parameters": "SageMaker's model parallelism is not part of this program",
    "tpu_num_cores": "the launcher decides it",
}

REMOVED = {
    "per_gpu_train_batch_size": "use --per_device_train_batch_size",
    "per_gpu_eval_batch_size": "use --per_device_eval_batch_size",
    "sharded_ddp": "use --fsdp full_shard",
    "push_to_hub_organization": "use --hub_model_id ORGANISATION/NAME",
    "tpu_metrics_debug": "use --debug tpu_metrics_debug",
    "past_index": "transformers 5 has no counterpart; leave it out",
    "torch_dtype": "use --load_float16, --load_bfloat16 or --load_int8",
    "dtype": "use --load_float16, --load_bfloat16 or --load_int8",
}


def merge_fsdp_config(given: str | None, extra: dict[str, Any]) -> str:
    """The JSON text of `given` (a JSON object, or None) with the keys of `extra` where it does not set them itself.

    Raises ValueError where `given` is a file's name: the file is the user's to edit.
    """
    if given is not None and not given.lstrip().startswith("{"):
        raise ValueError(f"argument --fsdp_config: put {json.dumps(extra)} into the file {given} itself")
    return json.dumps({**extra, **(json.loads(given) if given else {})})
