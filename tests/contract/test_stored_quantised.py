"""Models that are stored quantised: loaded, or one line that says by what, and what is missing; never a traceback."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.golden import DATA
from support.making import byte_level, fast, random_llama
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from justforward.commands.cli import main
from justforward.compat import TRANSFORMERS
from justforward.models import quantised
from justforward.models.loading import load
from justforward.models.sources import ModelError


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "model"
    random_llama(folder, fast(byte_level()), max_position_embeddings=512)
    return folder


@pytest.fixture
def stored(plain, tmp_path):
    """Makes a copy of the model whose configuration says that it is stored so."""

    def make(how):
        folder = shutil.copytree(plain, tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": how}))
        return folder

    return make


def test_the_command_line_says_so_and_writes_nothing(stored, capsys, monkeypatch):
    monkeypatch.setattr(quantised, "WANTED", {"gptq": ("optimum_that_is_not_here", "gptqmodel")})
    folder = stored({"quant_method": "gptq", "bits": 4})
    result = folder.parent / "result.json"
    words = ["--task_name", "SST2", "--data_dir", DATA, "--num_eval", "1", "--result_file", str(result)]
    assert main([*words, "--model_name", str(folder)]) == 2
    out, err = capsys.readouterr()
    said = f"justforward: error: --model_name {folder}: it is stored quantised by gptq, which needs optimum_that_is"
    assert err.strip().splitlines()[-1].startswith(said)
    assert "Traceback" not in out + err
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("method", AUTO_QUANTIZER_MAPPING)
def test_every_method_of_transformers_is_loaded_or_one_line(method, stored):
    name, _, bits = method.partition("_") if method.startswith("bitsandbytes") else (method, "", "")
    told = {f"load_in_{bits}": True} if bits else {"bits": 4, "group_size": 32}
    folder = stored({"quant_method": name, **told})
    reason = ""
    try:
        load(str(folder))
    except ModelError as error:
        reason = error.reason
    # Of bitnet the packed weights have another shape, which these have not.
    assert reason == "" or f"it is stored quantised by {name}, which " in reason or method == "bitnet"
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq, which needs optimum and gptqmodel: pip install optimum gptqmodel"),
        ({"quant_method": "awq", "bits": 4}, "awq, which needs gptqmodel: pip install gptqmodel, or take the unquant"),
        ({"quant_method": "modelopt"}, f"'modelopt', which transformers {transformers.__version__} does not know"),
        ({"bits": 4, "group_size": 64}, "its quantization_config names no quant_method, as is so in models of MLX"),
        ({"quant_method": ["gptq"]}, "its quantization_config names no quant_method"),
    ],
)
def test_what_is_missing_is_named(how, reason, stored, monkeypatch):
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda name: None)
    folder = stored(how)
    with pytest.raises(ModelError) as refused:
        load(str(folder))
    assert reason in refused.value.reason
    assert "\n" not in refused.value.reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may compute in 8 bits")
@pytest.mark.skipif(TRANSFORMERS < (5, 24), reason="tried with transformers 5.24")
def test_fp8_is_made_whole_without_a_gpu(stored):
    folder = stored({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]})
    whole, kept = load_file(folder / "model.safetensors"), {}
    for name, weight in whole.items():
        if "proj" in name:
            scale = weight.abs().max() / 448
            kept |= {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale.reshape(1, 1)}
    save_file({**whole, **kept}, folder / "model.safetensors", {"format": "pt"})
    model = load(str(folder)).model
    assert getattr(model.config, "quantization_config", None) is None
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, whole[name], rtol=0.07, atol=1e-3)
