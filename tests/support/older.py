"""What tests ask of the libraries where versions differ; what the package asks is in `justforward.compat`."""

from types import SimpleNamespace
from typing import Any

from justforward.compat import TRANSFORMERS

WARNINGS = [
    # transformers 5.0 builds tokenizers so.
    "ignore:Deprecated in 0.9.0. BPE.__init__ will not create from files:DeprecationWarning",
    # PEFT 0.19, of a base model that lies nowhere.
    "ignore:Could not find a config file in  - will assume:UserWarning",
    # transformers 5.0, of checkpoints that were written within a moment.
    "ignore:mtime may not be reliable on this filesystem:UserWarning",
    # torch 2.11's profiler, of every use.
    "ignore:Warning. Profiler clears events at the end of each cycle:UserWarning",
    # transformers before 5.10, of --fsdp_config alone.
    "ignore:`transformer_layer_cls_to_wrap` is useful only when:UserWarning",
]
"""What older versions warn of by themselves, for pytest's filters."""

NOT_YET = {"granite_hybrid", "jamba", "recurrent_gemma", "xlstm", "zamba2"} if TRANSFORMERS < (5, 15) else set[str]()
"""Families that older versions configure otherwise, cannot run without kernels, or continue wrongly."""


def align_special_tokens(model: Any, tokenizer: Any) -> None:
    """Have a model's configurations name the tokenizer's tokens; a method of the Trainer until transformers 5.2."""
    if TRANSFORMERS >= (5, 2):
        from transformers.trainer_utils import align_special_tokens

        align_special_tokens(model, tokenizer)
    else:
        from transformers import Trainer

        trainer: Any = SimpleNamespace(model=model, processing_class=tokenizer)
        Trainer._align_special_tokens(trainer)  # type: ignore[attr-defined]
