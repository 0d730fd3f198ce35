"""PEFT's adapter format: its settings, and its names for A and B.

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight        A, (r, d)
    base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight        B, (k, r)

`base_model.model.` is PEFT's own wrapping, the rest the module's name in Hugging Face's model. Where that model orders
a module's output rows otherwise (the queries and keys of its half-rotated rotary layout), B's rows follow: row i of
ΔW = BA is row i of B times A.
"""

from typing import Any

from torch import Tensor, nn

from files import shown
from lora.config import LoraConfig
from lora.inject import Slot, adapter_layout, foreign_names

PREFIX = "base_model.model."

# Settings without influence on what an adapter computes once its tensors are there. Whatever is neither here nor read
# by `config_from_settings` must be unset: a feature we do not know would silently change the model's answers.
HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "layers_pattern",  # says where layers_to_transform counts, and that is refused
    "megatron_core",
    "peft_version",
    "qalora_group_size",  # read only under use_qalora, and that is refused
    "revision",
    "runtime_config",
    "task_type",
}
UNDERSTOOD = {
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "target_modules",
    "bias",
    "init_lora_weights",
}
# Initialisations that leave the base's weights as they are; others (PiSSA, OLoRA, LoftQ, CorDA) subtract the adapter
# from the base first, and their tensors fit only that changed base.
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
MOST_TARGETS = 10_000
"""Names in the list of targets; in full names every linear module of a 65B is 560."""


def tensor_name(foreign: str, matrix: str) -> str:
    """Name of a module's A or B in a file.

    >>> tensor_name("model.layers.0.self_attn.q_proj", "A")
    'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'
    """
    return f"{PREFIX}{foreign}.lora_{matrix}.weight"


def settings_from_config(config: LoraConfig, target_modules: list[str], base_model: str | None) -> dict[str, Any]:
    """The content of `adapter_config.json`."""
    return {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.r,
        "target_modules": target_modules,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": config.rslora,
    }


def config_from_settings(settings: dict[str, Any], tensor_names: list[str]) -> LoraConfig:
    """The adapter that the settings describe.

    A pattern or keyword in the place of the list of targets ("all-linear") was resolved by whoever wrote the tensors:
    then their names say which modules are meant.

    Raises:
        ValueError: a needed setting is missing or out of range.
    """
    if missing := [name for name in ("peft_type", "r", "lora_alpha", "target_modules") if settings.get(name) is None]:
        raise ValueError(f"the settings lack {', '.join(missing)}")
    targets = settings["target_modules"]
    if isinstance(targets, str):
        suffix = tensor_name("", "A").removeprefix(PREFIX)
        targets = [name.removeprefix(PREFIX).removesuffix(suffix) for name in tensor_names if name.endswith(suffix)]
    if not isinstance(targets, list):
        raise ValueError(f"target_modules must be a list of names, found {shown(targets)}")
    if len(targets) > MOST_TARGETS:
        raise ValueError(f"target_modules has {len(targets)} names, more than {MOST_TARGETS}: is it damaged?")
    if not isinstance(rslora := settings.get("use_rslora", False), bool | None):
        raise ValueError(f"use_rslora = {shown(rslora)} must be true or false")
    return LoraConfig(
        r=settings["r"],
        alpha=settings["lora_alpha"],
        dropout=0.0 if settings.get("lora_dropout") is None else settings["lora_dropout"],
        targets=tuple(targets),
        rslora=bool(rslora),
    )


def unsupported_settings(settings: dict[str, Any]) -> list[str]:
    """A sentence for each setting that asks for something this project does not compute.

    >>> unsupported_settings({"peft_type": "LORA", "use_dora": True, "rank_pattern": {}})
    ['use_dora = True is not supported']
    """
    problems = []
    if settings.get("peft_type") != "LORA":
        problems.append(f"peft_type = {shown(settings.get('peft_type'))}, but only 'LORA' adapters can be loaded")
    if settings.get("bias") not in (None, "none"):
        problems.append(f"bias = {shown(settings['bias'])} is not supported: it trained biases, which LLaMA lacks")
    if (init := settings.get("init_lora_weights")) not in PLAIN_INITS:
        problems.append(
            f"init_lora_weights = {shown(init)} changed the base's weights: convert the adapter to plain LoRA"
        )
    unknown = sorted(name for name in settings.keys() - HARMLESS - UNDERSTOOD if _is_set(settings[name]))
    return problems + [f"{name} = {shown(settings[name])} is not supported" for name in unknown]


def target_modules(model: nn.Module, adapted: list[str]) -> list[str]:
    """The shortest foreign names that select just these modules: last components, or else whole names."""
    foreign = foreign_names(model)
    ends = {foreign[name].rpartition(".")[2] for name in adapted}
    selected = {own for own, key in foreign.items() if key.rpartition(".")[2] in ends}
    return sorted(ends if selected == set(adapted) else {foreign[name] for name in adapted})


def foreign_rows(model: nn.Module, name: str, lora_B: Tensor) -> Tensor:
    """Reorder B's rows from the model's own layout to the foreign one."""
    slot: Slot | None = adapter_layout(model).get(name)
    return lora_B if slot is None or slot.rows is None else lora_B[slot.rows.to(lora_B.device)]


def own_rows(model: nn.Module, name: str, lora_B: Tensor) -> Tensor:
    """Inverse of `foreign_rows`."""
    slot: Slot | None = adapter_layout(model).get(name)
    return lora_B if slot is None or slot.rows is None else lora_B[slot.rows.argsort().to(lora_B.device)]


def _is_set(value: object) -> bool:
    """Whether a setting says anything. 0 does: `layers_to_transform = 0` means the first layer."""
    return not (value is None or value is False or (isinstance(value, list | dict | str) and not value))
