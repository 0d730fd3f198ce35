"""A random LLaMA-7B on the device, ours and transformers', both from the same weights and with the same adapters.

The weights are drawn on the device, one at a time, and each is put where it belongs (and into 8 bits) before the next
is drawn: at no time is there more than the final model and one weight. As in peers.py a few channels of each norm that
feeds linear layers are raised to outliers, and the feed-forward's up projection is narrowed.
"""

from collections.abc import Iterator
from typing import TypeVar

import torch
from peers import DTYPE, OUTLIER_GAIN, UP_SCALE, bitsandbytes_linear
from peft_peer import with_adapters
from timing import Setting
from torch import Tensor, nn
from training_peers import B_STD, LORA

from int8 import Int8Linear
from llama import Llama, LlamaConfig
from llama.checkpoint.configs import hf_config_dict
from llama.checkpoint.names import hf_name, hf_rows, parameter_shapes
from llama.rotary import hf_row_order
from lora import add_lora
from lora.inject import replace_module

Model = TypeVar("Model", bound=nn.Module)

STD = 0.02
INPUT_NORMS = ("attention_norm", "ffn_norm", "input_layernorm", "post_attention_layernorm")  # our names and theirs


def config(setting: Setting) -> LlamaConfig:
    """7B's shape, or a tiny one."""
    return LlamaConfig(512, 64, 2, 4, 4, 96) if setting.tiny else LlamaConfig.named("7B")


def random_weights(shape: LlamaConfig, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Own name and value, bfloat16, of every parameter; the same whenever it is called."""
    generator = torch.Generator(device).manual_seed(0)
    for name, size in parameter_shapes(shape).items():
        weight = torch.ones(size, dtype=DTYPE, device=device)
        if len(size) > 1:
            weight.normal_(std=STD * (UP_SCALE if name.endswith("w3.weight") else 1), generator=generator)
        yield name, weight


def our_model(setting: Setting, *, int8: bool) -> Llama:
    """Ours, frozen, in bfloat16 or with its blocks in 8 bits, without adapters."""
    with torch.device("meta"):
        model = Llama(config(setting)).to(DTYPE)
    for name, weight in random_weights(model.config, setting.device):
        path = name.removesuffix(".weight")
        module = _put(model, path, weight)
        if int8 and isinstance(module, nn.Linear) and path.startswith("layers."):
            replace_module(model, path, Int8Linear.from_linear(module))
    return model


def our_model_with_adapters(setting: Setting, *, int8: bool) -> Llama:
    """The same with adapters, in training mode."""
    return _draw_adapters(add_lora(our_model(setting, int8=int8), LORA).train(), config(setting))


def transformers_model(setting: Setting, *, int8: bool) -> nn.Module:
    """The same weights in transformers' model, in bfloat16 or with bitsandbytes' layers in its blocks."""
    import transformers

    shape = config(setting)
    theirs = transformers.LlamaConfig(**hf_config_dict(shape, DTYPE))
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(theirs).to(DTYPE).eval()
    for name, weight in random_weights(shape, setting.device):
        rows = hf_rows(name, shape)
        path = hf_name(name).removesuffix(".weight")
        module = _put(model, path, weight if rows is None else weight[rows.to(setting.device)])
        if int8 and path.startswith("model.layers.") and isinstance(module, nn.Linear):
            replace_module(model, path, bitsandbytes_linear(module))
    model.model.rotary_emb = type(model.model.rotary_emb)(theirs).to(setting.device)  # its table was never computed
    return model


def transformers_model_with_adapters(setting: Setting, *, int8: bool) -> nn.Module:
    """The same with peft's adapters, in training mode."""
    return _draw_adapters(with_adapters(transformers_model(setting, int8=int8), LORA, int8=int8), config(setting))


@torch.no_grad()
def raise_channels(model: nn.Module, outliers: int) -> None:
    """Let that many channels of each norm that feeds linear layers, ours or transformers', be outliers, no others."""
    for name, module in model.named_modules():
        if name.endswith(INPUT_NORMS):
            gain = module.weight.fill_(1)
            gain[torch.arange(outliers) * len(gain) // max(1, outliers)] = OUTLIER_GAIN


@torch.no_grad()
def _draw_adapters(model: Model, shape: LlamaConfig) -> Model:
    """Give every A and B, in ours and in peft's the same; both list them in the order of the blocks."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            drawn = torch.randn(parameter.shape, generator=generator)
            if ".q_proj.lora_B" in name:  # of transformers' model, whose q has its rows in another order
                drawn = drawn[hf_row_order(shape.n_heads, shape.head_dim)]
            parameter.copy_(drawn * (B_STD if ".lora_B" in name else parameter.shape[1] ** -0.5))
    return model


def _put(model: nn.Module, path: str, weight: Tensor) -> nn.Module:
    """Give the module at that path its weight, frozen; returns the module."""
    module = model.get_submodule(path)
    module.weight = nn.Parameter(weight, requires_grad=False)
    return module
