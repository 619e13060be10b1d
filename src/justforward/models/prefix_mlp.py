"""A prefix made by an MLP, saved so that its training can go on.

PEFT saves the prefix that the MLP makes, which is what inference needs. Beside it stands the MLP itself.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from peft import PeftModelForCausalLM
from safetensors.torch import load_file, save_file

MLP_FILE = "prefix_mlp.safetensors"
"""In a folder of an adapter: embedding and MLP of the prefix, as PEFT's PrefixEncoder names them."""


class PrefixMLPModel(PeftModelForCausalLM):
    """PEFT's prefix-tuned model, whose one adapter is saved and loaded together with its MLP."""

    def save_pretrained(self, save_directory: str, *args: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        """As PEFT's, and the MLP beside it."""
        super().save_pretrained(save_directory, *args, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            (encoder,) = self.prompt_encoder.values()
            tensors = {name: value.detach().contiguous() for name, value in encoder.state_dict().items()}
            save_file(tensors, Path(save_directory) / MLP_FILE)

    def load_adapter(self, model_id: str | os.PathLike, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        """Load the MLP's weights where the folder has them and the adapter exists; else as PEFT does."""
        path = Path(model_id) / MLP_FILE
        if adapter_name not in self.prompt_encoder or not path.is_file():
            return super().load_adapter(model_id, adapter_name, *args, **kwargs)
        return self.prompt_encoder[adapter_name].load_state_dict(load_file(path))
