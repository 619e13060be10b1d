"""Generated answers by vLLM: handed the weights that the model has at the moment, before each batch.

Written against vLLM's documented interface and run with a stand-in of it only, never with vLLM itself. What is used:

- `LLM`, `collective_rpc`, `generate`: https://docs.vllm.ai/en/latest/api/vllm/entrypoints/llm/
- `SamplingParams`: https://github.com/vllm-project/vllm/blob/main/vllm/sampling_params.py
- weights given as names and tensors ("reload_weights" with a `weights_iterator`):
  https://github.com/vllm-project/vllm/blob/main/docs/training/layerwise.md
- adapters, `LoRARequest`: https://github.com/vllm-project/vllm/blob/main/docs/features/lora.md
- an engine within this process, so that tensors are handed over as they are:
  https://github.com/vllm-project/vllm/blob/main/docs/usage/reproducibility.md
"""

from __future__ import annotations

import copy
import importlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from justforward.scoring.finite import NotNumbersError, diverged, likely_cause
from justforward.scoring.generation import GenerationSettings, Generator

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as the largest rank of its adapters."""


class VllmGenerator(Generator):
    """A Generator whose answers vLLM makes; where they end, and what is cut from them, is the Generator's.

    model: a causal LM on one device, in plain weights, or one under a PEFT LoRA; its weights are read at every call, so
    whoever moves them must really move them; max_length: most tokens of a prompt and its answer; memory: the share of
    the device's memory that vLLM takes for itself. Raises ValueError, in one line, for other models.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        settings: GenerationSettings,
        *,
        max_length: int,
        memory: float,
        ends: Sequence[int] = (),
    ):
        super().__init__(model, tokenizer, settings, ends=ends)
        if len({p.device for p in model.parameters()}) > 1:
            raise ValueError("--generator vllm takes a model that is on one device: add --no_auto_device")
        self.lora: Any = getattr(model, "peft_config", {}).get("default")
        if getattr(_plain(model).config, "quantization_config", None) or getattr(
            self.lora, "is_prompt_learning", False
        ):
            raise ValueError(
                "--generator vllm takes plain weights, or LoRA over them, and the model is another: leave it out"
            )
        self.calls = 0
        self.folder = Path(tempfile.mkdtemp(prefix="justforward-vllm-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        _write_base(model, tokenizer, self.folder)
        # The engine's own process would get every weight as pickled bytes. This is read when an engine is made.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            self.vllm: Any = importlib.import_module("vllm")
            self.engine = self._engine(max_length, memory)
        except (RuntimeError, ImportError) as error:  # memory that runs out, a build for another torch
            raise ValueError(f"--generator vllm does not start here: {' '.join(str(error).split())}") from error

    def _engine(self, max_length: int, memory: float) -> Any:
        """VLLM's own object, with weights of its own still to be given."""
        more: dict[str, Any] = {"load_format": "dummy"}
        if self.lora is not None:
            more = {
                "enable_lora": True,
                "max_lora_rank": next(n for n in (*LORA_RANKS, self.lora.r) if n >= self.lora.r),
            }
        with torch.random.fork_rng():  # an engine within the process seeds torch
            return self.vllm.LLM(
                model=str(self.folder),
                dtype=str(next(_plain(self.model).parameters()).dtype).removeprefix("torch."),
                max_model_len=max_length,
                gpu_memory_utilization=memory,
                enable_prefix_caching=False,  # what it keeps of a prompt is of other weights
                generation_config="vllm",  # not the model's own, as in the Generator
                **more,
            )

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], progress: Callable[[int], None] | None = None) -> list[str]:
        """See Generator. Raises NotNumbersError for trained weights that are NaN or infinite."""
        if not prompts:
            return []
        if diverged(self.model):
            raise NotNumbersError(f"no text can be generated: {likely_cause(self.model)}")
        outputs = self.engine.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            [self.vllm.SamplingParams(**asked) for asked in self._sampling(len(prompts))],
            use_tqdm=False,
            **self._handed_over(),
        )
        if progress is not None:
            progress(len(prompts))
        return [self._answer(list(output.outputs[0].token_ids)) for output in outputs]

    def _sampling(self, count: int) -> list[dict[str, Any]]:
        """What is asked for each prompt; the seeds come from torch's generator, which a caller sets for all probes."""
        s = self.settings
        asked: dict[str, Any] = {
            "max_tokens": s.max_new_tokens,
            "stop": list(s.ends),
            "stop_token_ids": self.stops,
            "temperature": 0.0,
        }
        if not s.sampling:
            return [asked] * count
        asked |= {"temperature": s.temperature, "top_k": s.top_k or 0, "top_p": s.top_p}
        return [asked | {"seed": seed} for seed in torch.randint(2**31, (count,)).tolist()]

    def _handed_over(self) -> dict[str, Any]:
        """Give the engine the weights as they are now; what its `generate` is told besides."""
        if self.lora is None:
            self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": named_weights(self.model)})
            return {}
        shutil.rmtree(self.folder / f"adapter{self.calls}", ignore_errors=True)
        self.calls += 1  # an adapter that the engine knows by its number is not read again
        path = self.folder / f"adapter{self.calls}"
        model: Any = self.model
        model.save_pretrained(path, save_embedding_layers=False)
        request = importlib.import_module("vllm.lora.request").LoRARequest
        return {"lora_request": request(path.name, self.calls, str(path))}


def named_weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and tensors of a plain model as a checkpoint has them; tied weights stand there once."""
    tied = getattr(model, "all_tied_weights_keys", {})
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    return list(revert_weight_conversion(model, state).items())  # type: ignore[arg-type]


def _plain(model: nn.Module) -> Any:
    return getattr(model, "get_base_model", lambda: model)()


def _write_base(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write what an engine starts from: configuration and tokenizer, and under an adapter the weights that stay."""
    base = _plain(model)
    tokenizer.save_pretrained(folder)
    if base is model:
        config = copy.deepcopy(base.config)
        config.architectures = [type(base).__name__]
        config.save_pretrained(folder)
        return
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in base.state_dict().items()}
    base.save_pretrained(folder, state_dict={name: t for name, t in state.items() if ".lora_" not in name})
