"""A stand-in for vLLM: the part of its documented interface that justforward uses, generating by transformers.

It keeps weights of its own, as vLLM does: what a test sees of the model's weights has come through the interface.
"""

import os
import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


@dataclass
class SamplingParams:
    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)


@dataclass
class CompletionOutput:
    token_ids: list[int]


@dataclass
class RequestOutput:
    outputs: list[CompletionOutput]


class LLM:
    made: ClassVar[list[Any]] = []

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        load_format: str = "auto",
        max_model_len: int,
        gpu_memory_utilization: float = 0.9,
        enable_prefix_caching: bool = True,
        generation_config: str = "auto",
        enable_lora: bool = False,
        max_lora_rank: int = 16,
    ):
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
        assert (generation_config, enable_prefix_caching) == ("vllm", False)
        torch.manual_seed(0)
        kind: Any = getattr(torch, dtype)
        if load_format == "dummy":
            self.model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=kind)
        else:
            self.model = AutoModelForCausalLM.from_pretrained(model, dtype=kind)
        self.model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.length, self.enable_lora, self.rank = max_model_len, enable_lora, max_lora_rank
        self.asked: list[list[SamplingParams]] = []
        self.adapters: dict[int, str] = {}
        LLM.made.append(self)

    def collective_rpc(self, method: str, timeout: Any = None, args: Any = (), kwargs: Any = None) -> list[None]:
        assert (method, list(kwargs)) == ("reload_weights", ["weights_iterator"])
        given = {name: tensor.clone() for name, tensor in kwargs["weights_iterator"]}
        found = self.model.load_state_dict(given, strict=False)
        tied = set(self.model.all_tied_weights_keys)
        assert not found.unexpected_keys
        assert set(found.missing_keys) <= tied
        assert not tied & given.keys()
        return [None]

    @torch.no_grad()
    def generate(
        self, prompts: list[dict], sampling_params: list[SamplingParams], *, use_tqdm: bool, lora_request: Any = None
    ) -> list[RequestOutput]:
        assert len(prompts) == len(sampling_params)
        assert (lora_request is not None) == self.enable_lora
        self.asked.append(sampling_params)
        model: Any = self.model
        if lora_request is not None:
            assert lora_request.lora_int_id not in self.adapters  # it would be taken for the one that is known
            self.adapters[lora_request.lora_int_id] = lora_request.lora_path
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PEFT asks for what transformers has renamed
                model = PeftModel.from_pretrained(self.model, lora_request.lora_path)
            config: Any = model.peft_config["default"]
            assert self.rank >= config.r
        pairs = zip(prompts, sampling_params, strict=True)
        made = [RequestOutput([CompletionOutput(self._continued(model, p, s))]) for p, s in pairs]
        if lora_request is not None:
            self.model = model.unload()
        return made

    def _continued(self, model: Any, prompt: dict, asked: SamplingParams) -> list[int]:
        tokens, new = list(prompt["prompt_token_ids"]), []
        assert 0 < len(tokens) <= self.length - asked.max_tokens
        generator = None if asked.seed is None else torch.Generator().manual_seed(asked.seed)
        while len(new) < asked.max_tokens:
            logits = model(input_ids=torch.tensor([tokens + new]), use_cache=False).logits[0, -1].float()
            if asked.temperature == 0:
                new.append(int(logits.argmax()))
            else:
                likely = (logits / asked.temperature).softmax(-1)
                new.append(int(likely.multinomial(1, generator=generator)))
            text = self.tokenizer.decode(new, skip_special_tokens=True)
            if new[-1] in asked.stop_token_ids or any(end in text for end in asked.stop):
                break
        return new
