"""What a run will need, before anything is allocated: the model on PyTorch's meta device, and arithmetic.

Weights, gradients and optimizer state are counted from the tensors themselves. The activations that a block keeps for
its backward pass are counted from its code, per token, with w bytes per element (2 in bf16, 4 in float32):

    frozen base     2·s·C  +  w·(2C + 2·G·D)  +  4H  +  2·w·F
                    RMSNorm: its input, s = w bytes each (4 in bf16-mixed); attention: q, k, v, output, log-sum-exp;
                    SwiGLU: gate, up
    trained base    + 2·w·C + w·F       the inputs of every product (bf16-mixed: 5·w·C + w·F)
    an adapter      + w·(r + in), inputs shared

Letters: C model width, H heads, G key/value heads, D head size, F hidden size, V vocabulary, r rank.
"""

from dataclasses import dataclass, fields

import torch
from torch import nn

from int8 import Int8Linear, convert_to_int8
from int8.gradient import DECODE_ELEMENTS
from int8.scaled import ROWS
from llama import Llama, LlamaConfig
from lora import LoraLinear
from optim8bit import embeddings_in_32bit, planned_state_bytes
from recipe.assemble import prepare_for_training, storage_dtype
from recipe.config import OptimSection, RunConfig

FLOAT32 = 4

CHUNK_LOGITS = 2**24
"""As in `training.loss`, which must not be imported from here; a test holds them equal."""


@dataclass(frozen=True)
class ParameterCount:
    """Number of weights by what happens to them."""

    trainable: int
    frozen: int
    int8: int


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted bytes on the training device, by purpose. `total` leaves out what the framework itself occupies."""

    int8_weights: int
    frozen_weights: int
    trainable_weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    scratch: int

    @property
    def total(self) -> int:
        """Sum of all purposes."""
        return sum(getattr(self, field.name) for field in fields(self))


def meta_model(config: RunConfig, shape: LlamaConfig) -> Llama:
    """The model of a run without its weights: every module, dtype and adapter in place, no memory."""
    with torch.device("meta"):
        model = Llama(shape).to(storage_dtype(config))
        if config.train.method == "lora-8bit":
            convert_to_int8(model, config.int8.threshold)
        return prepare_for_training(model, config)


def count_parameters(model: nn.Module) -> dict[str, ParameterCount]:
    """Weights per package: `llama` (embeddings, norms, 16- or 32-bit products), `int8` (codes), `lora` (adapters)."""
    lora = {id(p) for m in model.modules() if isinstance(m, LoraLinear) for p in (m.lora_A, m.lora_B)}
    own = [p for p in model.parameters() if id(p) not in lora]
    adapters = [p for p in model.parameters() if id(p) in lora]
    codes = sum(m.weight_codes.numel() for m in model.modules() if isinstance(m, Int8Linear))
    return {
        "llama": ParameterCount(_count(own, trainable=True), _count(own, trainable=False), 0),
        "int8": ParameterCount(0, 0, codes),
        "lora": ParameterCount(_count(adapters, trainable=True), _count(adapters, trainable=False), 0),
    }


def predict_memory(model: Llama, config: RunConfig, *, processes: int = 1) -> MemoryPlan:
    """Bytes that training `model` (on the meta device or real) will take at its peak, on each device.

    Args:
        processes: how many train together. Adapters are trained on a whole base everywhere; under the method full, each
            has its share of weights, gradients and optimizer state, and the weights of two blocks (one at work, the
            next arriving) and of embedding and head besides, whole, with one block's whole gradient.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    head = [p for p in model.output.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    int8 = [m for m in model.modules() if isinstance(m, Int8Linear)]
    shares = processes if config.train.method == "full" else 1
    width = product_width(config)
    tokens = config.train.micro_batch_size * config.data.max_length
    # Of one chunk: the gradient takes the logits' place; without C, 16-bit ones get a float32 copy besides.
    logit_bytes = FLOAT32 + (width if width < FLOAT32 else 0)
    chunk = max(CHUNK_LOGITS, model.config.vocab_size)
    return MemoryPlan(
        int8_weights=sum(m.weight_codes.numel() + FLOAT32 * m.weight_absmax.numel() for m in int8),
        frozen_weights=_bytes(frozen),
        trainable_weights=_bytes(trainable) // shares,
        # Of adapters, which travel as one vector, once more.
        gradients=_bytes(trainable) * (2 if processes > shares else 1) // shares,
        optimizer=optimizer_bytes(model, config.optim) // shares,
        activations=tokens * activation_bytes_per_token(model, config),
        # beside them a trained head's gradient, summed over chunks
        logits=min(tokens * model.config.vocab_size, chunk) * logit_bytes + _bytes(head),
        # what an int8 product takes while it runs; autocast's 16-bit copies of all masters
        scratch=max((_int8_scratch(m, tokens, width) for m in int8), default=0)
        + (config.train.precision == "bf16-mixed" and shares == 1) * _bytes(trainable) // 2
        + (shares > 1) * _gathered_bytes(model, config),
    )


def _gathered_bytes(model: Llama, config: RunConfig) -> int:
    """What FSDP holds whole beside the shares: two blocks and one gradient of a block, embedding and head."""
    block = _bytes(list(model.layers[0].parameters()))
    narrow = config.train.precision == "bf16-mixed"
    weights = 2 * block // (2 if narrow else 1)
    root = [*model.tok_embeddings.parameters(), *model.norm.parameters(), *model.output.parameters()]
    return weights + block + 2 * _bytes(list({id(p): p for p in root}.values()))


def _int8_scratch(layer: Int8Linear, tokens: int, width: int) -> int:
    """The int32 product of ROWS rows at a time, or the slice of the weight that an exact backward pass decodes."""
    product = FLOAT32 * min(tokens, ROWS) * max(layer.in_features, layer.out_features)
    decoded = width * min(layer.weight_codes.numel(), DECODE_ELEMENTS) if layer.backward == "exact" else 0
    return max(product, decoded)


def activation_bytes_per_token(model: Llama, config: RunConfig) -> int:
    """Bytes kept per token between forward and backward pass, over all blocks (formula above)."""
    shape = model.config
    stream = torch.finfo(storage_dtype(config)).bits // 8
    width = product_width(config)
    kept = block_activation_bytes(shape, width=width, stream=stream, trainable=config.train.method == "full")
    kept += width * sum(adapter_activations(model.layers[0]).values())
    if config.train.gradient_checkpointing:
        return shape.n_layers * stream * shape.dim + kept
    return shape.n_layers * kept


def product_width(config: RunConfig) -> int:
    """Bytes per element of what matrix products read and write."""
    return FLOAT32 if config.train.precision == "float32" else 2


def adapter_activations(block: nn.Module) -> dict[str, int]:
    """Elements that the adapters of a block keep per token, by input.

    Adapters of the same input share it, and `wo`'s is the attention's output, which is kept anyway. Dropout keeps
    nothing of its own: its mask is computed again.
    """
    shared_input = {"wq": "attention", "wk": "attention", "wv": "attention", "w1": "feed-forward", "w3": "feed-forward"}
    kept: dict[str, int] = {}
    for name, adapter in block.named_modules():
        if not isinstance(adapter, LoraLinear):
            continue
        kept[f"{name}, A x"] = adapter.r
        own = name.rpartition(".")[2]
        if own != "wo":
            kept[shared_input.get(own, own)] = adapter.in_features
    return kept


def block_activation_bytes(shape: LlamaConfig, *, width: int, stream: int, trainable: bool) -> int:
    """Bytes one block keeps per token, adapters not counted.

    Args:
        width: bytes per element that products read and write.
        stream: bytes per element of the residual stream.
        trainable: whether the block's own weights are trained.
    """
    dim, hidden = shape.dim, shape.hidden_dim
    norms = 2 * stream * dim
    attention = width * (2 * dim + 2 * shape.n_kv_heads * shape.head_dim) + FLOAT32 * shape.n_heads
    swiglu = 2 * width * hidden
    if not trainable:
        return norms + attention + swiglu
    # q, k, v share their input and gate, up theirs; autocast casts it anew for each of the five
    inputs = 2 if stream == width else 5
    return norms + attention + swiglu + inputs * width * dim + width * hidden


def optimizer_bytes(model: nn.Module, settings: OptimSection) -> int:
    """Bytes of both moments of everything trainable, as `build_optimizer` groups it."""
    if settings.name == "adamw":
        return 2 * FLOAT32 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    return sum(planned_state(model, settings))


def planned_state(model: nn.Module, settings: OptimSection) -> tuple[int, int]:
    """Bytes of moments that adamw8bit will keep in 8 bits and in 32; a tiny model's adapters may all be too small."""
    planned = [
        planned_state_bytes(p.numel(), bits=group.get("bits", 8), min_8bit_size=settings.min_8bit_size)
        for group in embeddings_in_32bit(model)
        for p in group["params"]
    ]
    return sum(state.in_8bit for state in planned), sum(state.in_32bit for state in planned)


def _count(parameters: list[nn.Parameter], *, trainable: bool) -> int:
    return sum(p.numel() for p in parameters if p.requires_grad == trainable)


def _bytes(parameters: list[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)
