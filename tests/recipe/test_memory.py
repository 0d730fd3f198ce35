"""Predicted memory: against the bytes that autograd really keeps, and against the published figures' arithmetic."""

import pytest
import torch

import recipe.memory
import training.loss
from int8 import convert_to_int8
from llama import Llama, LlamaConfig
from llama.rotary import rotary_table
from recipe import RunConfig, count_parameters, meta_model, predict_memory, prepare_for_training
from recipe.config import LoraSection, OptimSection, TrainSection
from recipe.memory import activation_bytes_per_token

SHAPE = LlamaConfig(64, 64, 1, 4, 2, 96)
TOKENS = 2 * 45


def config(method: str, precision: str, **train) -> RunConfig:
    dropout = train.pop("dropout", 0.1)
    lora = LoraSection(r=8, dropout=dropout, targets=train.pop("targets", ("q_proj", "v_proj")))
    return RunConfig(lora=lora, train=TrainSection(method=method, precision=precision, **train))


def saved_bytes(model: Llama, *, mixed: bool) -> int:
    """Bytes of the distinct storages that one block keeps for its backward pass, weights and rotations not counted."""
    rotation = rotary_table(torch.arange(45), SHAPE.head_dim, SHAPE.rope_theta)
    known = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers(), *rotation]}
    weight_sizes = {p.numel() for p in model.parameters() if p.ndim == 2}  # adapters are cast to 16 bits
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and not (tensor.ndim == 2 and tensor.numel() in weight_sizes):
            kept[storage.data_ptr()] = tensor  # holding it keeps its address from being used again
        return tensor

    hidden = torch.randn(2, 45, 64, dtype=model.norm.weight.dtype, requires_grad=True)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=mixed)
    with autocast, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.layers[0](hidden, rotation)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


FEW, MANY = ("q_proj", "v_proj"), ("k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RUNS = [("full", precision, 0.0, FEW) for precision in ("float32", "bf16", "bf16-mixed")] + [
    ("lora", precision, dropout, targets)
    for precision in ("float32", "bf16")
    for dropout in (0.0, 0.1)
    for targets in (FEW, MANY)
]
RUNS += [("lora-8bit", precision, 0.1, targets) for precision in ("float32", "bf16") for targets in (FEW, MANY)]


@pytest.mark.parametrize(("method", "precision", "dropout", "targets"), RUNS)
def test_activations_are_what_autograd_keeps(check_bound, method, precision, dropout, targets):
    run = config(method, precision, dropout=dropout, targets=targets)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = Llama(SHAPE).init_weights().to(dtype)
    model = prepare_for_training(convert_to_int8(model) if method == "lora-8bit" else model, run)
    predicted = TOKENS * activation_bytes_per_token(model, run)
    measured = saved_bytes(model, mixed=precision == "bf16-mixed")
    check_bound(f"memory: activations, {method}, {precision}, dropout {dropout}", abs(predicted / measured - 1), 0.0)


def test_the_loss_goes_through_the_head_in_the_chunks_that_are_counted():
    assert recipe.memory.CHUNK_LOGITS == training.loss.CHUNK_LOGITS


def test_checkpointing_keeps_one_stream_per_block_and_one_block():
    shape = LlamaConfig(64, 64, 10, 4, 2, 96)
    plain, checkpointed = (
        activation_bytes_per_token(meta_model(run, shape), run)
        for run in (config("full", "bf16"), config("full", "bf16", gradient_checkpointing=True))
    )
    assert checkpointed == plain // 10 + 10 * 2 * 64


@pytest.mark.parametrize("method", ["full", "lora", "lora-8bit"])
def test_weights_gradients_and_state_are_counted_from_the_tensors(method):
    run = config(method, "bf16")
    model = meta_model(run, LlamaConfig.named("7B"))
    memory, counts = predict_memory(model, run), count_parameters(model)
    adapters = 32 * 2 * 8 * (4096 + 4096)
    if method == "full":
        assert counts["llama"].trainable == 6_738_415_616
        assert memory.trainable_weights == memory.gradients == 2 * 6_738_415_616
        assert memory.optimizer == 8 * 6_738_415_616  # both moments in float32, whatever the weights
        return
    assert counts["lora"].trainable == adapters
    assert memory.gradients == 4 * adapters  # float32 masters
    if method == "lora-8bit":
        assert counts["int8"].int8 == memory.int8_weights - 4 * 32 * (4 * 4096 + 2 * 11008 + 4096)
        assert memory.frozen_weights == 2 * (2 * 32000 * 4096 + 65 * 4096)


def test_eight_bit_state_is_a_quarter():
    run = RunConfig(optim=OptimSection(name="adamw8bit"), train=TrainSection(method="full", precision="float32"))
    memory = predict_memory(meta_model(run, LlamaConfig.named("7B")), run)
    # all but embeddings (32-bit state by choice) and norms (too small): 2 bytes and 2·4/256 of scales per weight
    embeddings, norms = 32_000 * 4096, 65 * 4096
    matrices = 6_738_415_616 - embeddings - norms
    gains = 65 * 2 * (4096 + 4 * 16)  # a gain of 4,096 elements just reaches the size for 8-bit state
    assert memory.optimizer == 2 * (matrices + 4 * matrices // 256) + 8 * embeddings + gains
