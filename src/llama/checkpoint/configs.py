"""A model's shape in its two spellings: Hugging Face's `config.json` and Meta's `params.json`.

Reading refuses by name whatever this model does not compute (biases, scaled rotary frequencies…): such a checkpoint
would load without complaint and answer with noise. Keys that change nothing are passed over. Two keys mark files that
hold something else than a model's weights, codes or differences; they are for readers who ask for that mark.

Meta's file implies two things instead of saying them. The hidden size follows from `multiple_of` and
`ffn_dim_multiplier` (`swiglu_hidden_dim`). The context length is not there at all: it is taken from the published
shape that fits, and 2048 otherwise; we write `max_seq_len` where that rule would give the wrong one. (Meta's own code
refuses that key, so it is left out of all published shapes.)
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from files import FileError, UnsuitableFileError, shown
from llama.config import CEILINGS, NAMED, LlamaConfig, swiglu_hidden_dim

DEFAULT_CONTEXT = 2048
# (multiple_of, ffn_dim_multiplier) of LLaMA-1 and -2 up to 13B, LLaMA-2-70B, LLaMA-3-8B: tried first when writing.
PUBLISHED_ROUNDINGS: tuple[tuple[int, float | None], ...] = ((256, None), (4096, 1.3), (1024, 1.3))
QUANTIZED, DIFFERENCE = "quantization_config", "weight_diff"
"""Keys of a `config.json` that mark quantized weights, and the difference of two models (`llama.checkpoint.diff`)."""
ANEW = "download the file again, or name another model"
PARAMS_KEYS = {
    *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps"),
    *("rope_theta", "use_scaled_rope", "max_seq_len", "max_batch_size"),
}


def config_from_hf(raw: Mapping[str, Any], origin: str = "config.json", *, mark: str | None = None) -> LlamaConfig:
    """The shape in the content of a `config.json`, as transformers before and after its version 5 writes it.

    Args:
        raw: the file's content.
        origin: what to call it in messages.
        mark: the one that the caller knows how to read, `QUANTIZED` or `DIFFERENCE`; by default neither may be there.

    Raises:
        UnsuitableFileError: a key is missing, absurd, or asks for what this model does not compute.
    """
    _refuse_marked(raw, origin, mark)
    rope = _merged_rope(raw, origin)
    tied = raw.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise UnsuitableFileError(
            f"tie_word_embeddings = {shown(tied)} must be true or false", file=origin, remedy=ANEW
        )
    wanted: dict[str, tuple[Any, Any]] = {  # key -> (value found, the only one that this model computes)
        "model_type": (raw.get("model_type", "llama"), "llama"),
        "hidden_act": (raw.get("hidden_act", "silu"), "silu"),
        "attention_bias": (raw.get("attention_bias", False), False),
        "mlp_bias": (raw.get("mlp_bias", False), False),
        "rope_scaling (rope_type)": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "partial_rotary_factor": (rope.get("partial_rotary_factor", 1.0), 1.0),
    }
    _refuse_others(wanted, origin)
    n_heads = _count(raw, "num_attention_heads", "n_heads", origin)
    with _naming(origin):
        config = LlamaConfig(
            vocab_size=_count(raw, "vocab_size", "vocab_size", origin),
            dim=_count(raw, "hidden_size", "dim", origin),
            n_layers=_count(raw, "num_hidden_layers", "n_layers", origin),
            n_heads=n_heads,
            n_kv_heads=_count(raw, "num_key_value_heads", "n_kv_heads", origin, default=n_heads),
            hidden_dim=_count(raw, "intermediate_size", "hidden_dim", origin),
            norm_eps=_number(raw, "rms_norm_eps", origin, default=1e-6),
            rope_theta=_number(rope, "rope_theta", origin, default=10_000.0),
            max_seq_len=_count(raw, "max_position_embeddings", "max_seq_len", origin, default=DEFAULT_CONTEXT),
            tie_embeddings=tied,
        )
    if (head_dim := raw.get("head_dim")) not in (None, config.head_dim):
        raise UnsuitableFileError(
            f"head_dim = {shown(head_dim)}, but hidden_size / num_attention_heads = {config.head_dim}",
            file=origin,
            remedy="name another model: only those whose heads divide the width are supported",
        )
    return config


def hf_config_dict(config: LlamaConfig, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """The content of a `config.json` that transformers before and after its version 5 loads as this shape.

    Args:
        dtype: of the weights; transformers then loads them in it.

    >>> hf_config_dict(LlamaConfig.named("7B"), torch.float16)["torch_dtype"]
    'float16'
    """
    content = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        # Version 5 reads the second form, earlier ones the first.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "use_cache": True,
    }
    return content if dtype is None else content | {"torch_dtype": str(dtype).removeprefix("torch.")}


def config_from_params(
    raw: Mapping[str, Any], *, embedding_rows: int | None, tied: bool, origin: str = "params.json"
) -> LlamaConfig:
    """The shape in the content of a `params.json`.

    Args:
        raw: the file's content.
        embedding_rows: vocabulary size of the stored embedding, for files that say −1; None if there is none.
        tied: whether the stored head equals the embedding; the file does not say.
        origin: what to call it in messages.

    Raises:
        UnsuitableFileError: a key is missing, absurd, or unknown.
    """
    if unknown := sorted(set(raw) - PARAMS_KEYS):
        raise UnsuitableFileError(
            f"unknown keys {', '.join(unknown)}: a model that needs them is not the LLaMA computed here",
            file=origin,
            remedy="remove those that change nothing",
        )
    _refuse_others({"use_scaled_rope": (raw.get("use_scaled_rope", False), False)}, origin)
    vocab_size = raw.get("vocab_size")
    if vocab_size == -1:
        if embedding_rows is None:
            raise UnsuitableFileError(
                "vocab_size = -1 means the embedding's, but there are no weights beside the file",
                file=origin,
                remedy="copy them there, or write the number",
            )
        vocab_size = embedding_rows
    n_heads, dim = _count(raw, "n_heads", "n_heads", origin), _count(raw, "dim", "dim", origin)
    multiple_of = _count(raw, "multiple_of", "hidden_dim", origin)
    multiplier = _number(raw, "ffn_dim_multiplier", origin, default=1.0)
    with _naming(origin):
        config = LlamaConfig(
            vocab_size=_count({"vocab_size": vocab_size}, "vocab_size", "vocab_size", origin),
            dim=dim,
            n_layers=_count(raw, "n_layers", "n_layers", origin),
            n_heads=n_heads,
            n_kv_heads=_count(raw, "n_kv_heads", "n_kv_heads", origin, default=n_heads),
            hidden_dim=swiglu_hidden_dim(dim, multiple_of, multiplier),
            norm_eps=_number(raw, "norm_eps", origin),
            rope_theta=_number(raw, "rope_theta", origin, default=10_000.0),
            tie_embeddings=tied,
        )
    window = _count(raw, "max_seq_len", "max_seq_len", origin, default=_implied_context(config))
    return replace(config, max_seq_len=window)


def params_dict(config: LlamaConfig) -> dict[str, Any]:
    """The content of a `params.json` for this shape. What Meta's defaults imply is left out.

    >>> params_dict(LlamaConfig.named("7B"))
    {'dim': 4096, 'multiple_of': 256, 'n_heads': 32, 'n_layers': 32, 'norm_eps': 1e-06, 'vocab_size': 32000}
    """
    multiple_of, multiplier = _hidden_rounding(config.dim, config.hidden_dim)
    content: dict[str, Any] = {
        "dim": config.dim,
        "multiple_of": multiple_of,
        "n_heads": config.n_heads,
        "n_layers": config.n_layers,
        "norm_eps": config.norm_eps,
        "vocab_size": config.vocab_size,
    }
    if multiplier is not None:
        content["ffn_dim_multiplier"] = multiplier
    if config.n_kv_heads != config.n_heads:
        content["n_kv_heads"] = config.n_kv_heads
    if config.rope_theta != 10_000.0:
        content["rope_theta"] = config.rope_theta
    if config.max_seq_len != _implied_context(config):
        content["max_seq_len"] = config.max_seq_len
    return content


def _implied_context(config: LlamaConfig) -> int:
    """The context length of the published model of this shape, else the default."""
    for named in NAMED.values():
        if replace(config, max_seq_len=named.max_seq_len) == named:
            return named.max_seq_len
    return DEFAULT_CONTEXT


def _hidden_rounding(dim: int, hidden_dim: int) -> tuple[int, float | None]:
    """`multiple_of` and `ffn_dim_multiplier` from which the hidden size follows, the published ones first.

    >>> _hidden_rounding(4096, 11008), _hidden_rounding(8192, 28672), _hidden_rounding(64, 172)
    ((256, None), (4096, 1.3), (4, None))
    """
    powers = [(2**exponent, None) for exponent in range(10, -1, -1)]
    for multiple_of, multiplier in (*PUBLISHED_ROUNDINGS, *powers):
        if swiglu_hidden_dim(dim, multiple_of, multiplier or 1.0) == hidden_dim:
            return multiple_of, multiplier
    # Any size at all: the half keeps the rounded-down product on hidden_dim whatever the division's last bit.
    return 1, (hidden_dim + 0.5) / int(2 * 4 * dim / 3)


def _merged_rope(raw: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The rotary settings, whichever of the three places they are in; the newest spelling wins."""
    merged = {key: raw[key] for key in ("rope_theta", "partial_rotary_factor") if raw.get(key) is not None}
    for place in ("rope_scaling", "rope_parameters"):
        settings = raw.get(place)
        if settings is not None and not isinstance(settings, dict):
            raise UnsuitableFileError(f"{place} = {shown(settings)} must be an object", file=origin, remedy=ANEW)
        merged |= settings or {}
    return merged


def _refuse_marked(raw: Mapping[str, Any], origin: str, known: str | None) -> None:
    """Refuse weights that are no plain numbers, unless they are of the kind that the caller asked for."""
    if known != QUANTIZED and (settings := raw.get(QUANTIZED)) is not None:
        method = settings.get("quant_method") if isinstance(settings, dict) else settings
        raise UnsuitableFileError(
            f"the weights are quantized ({QUANTIZED}: quant_method = {shown(method)}), and such cannot be merged, "
            "compared or converted",
            file=origin,
            remedy="name the checkpoint in 16 or 32 bits that they were made from",
        )
    if known != DIFFERENCE and raw.get(DIFFERENCE) is not None:
        raise UnsuitableFileError(
            f"this is the difference between two models ({DIFFERENCE}), not a model",
            file=origin,
            remedy="add it to its base with convert.py diff apply, and name the result",
        )


def _refuse_others(wanted: Mapping[str, tuple[Any, Any]], origin: str) -> None:
    refused = [
        f"{key} = {shown(found)} (supported: {only!r})" for key, (found, only) in wanted.items() if found != only
    ]
    if refused:
        raise UnsuitableFileError(
            f"it describes another model than the LLaMA computed here: {', '.join(refused)}",
            file=origin,
            remedy="name one whose config.json has the supported values",
        )


@contextmanager
def _naming(origin: str) -> Iterator[None]:
    """What is wrong with the sizes together (heads that do not divide, an overflow) is wrong in that file."""
    try:
        yield
    except FileError:
        raise
    except (ValueError, OverflowError) as error:
        raise UnsuitableFileError(str(error), file=origin, remedy=ANEW) from error


def _count(raw: Mapping[str, Any], key: str, field: str, origin: str, default: int | None = None) -> int:
    """The file's `key`, as large as `LlamaConfig`'s `field` may be."""
    value = raw.get(key) if raw.get(key) is not None else default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= CEILINGS[field]:
        problem = f"{key} = {shown(value)} must be a positive whole number of at most {CEILINGS[field]}"
        raise UnsuitableFileError(problem, file=origin, remedy=ANEW)
    return value


def _number(raw: Mapping[str, Any], key: str, origin: str, default: float | None = None) -> float:
    value = raw.get(key) if raw.get(key) is not None else default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
        raise UnsuitableFileError(f"{key} = {shown(value)} must be a positive number", file=origin, remedy=ANEW)
    return float(value)
