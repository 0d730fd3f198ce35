"""One token through all blocks in one go: what the loop over the blocks computes, wherever it applies."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_llama
from torch import Tensor, nn

import llama.model
from int8 import Int8Linear, convert_to_int8
from llama import KVCache, Llama, LlamaConfig, generate, rotary_table
from llama.one_token import prepare, through_blocks
from lora import LoraConfig, adapters_disabled, add_lora, lora_layers, merge_lora
from native import c_backend, rows

Check = Callable[[str, float, float], None]

needs_compiler = pytest.mark.skipif(c_backend() != "C", reason="install a C compiler")

KINDS = ["bfloat16", "int8", "bfloat16, adapter", "int8, adapter"]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def make(kind: str = "bfloat16", *, seed: int = 0, **shape: int) -> Llama:
    model = tiny_llama(seed, **shape)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.copy_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
    if "int8" in kind:
        convert_to_int8(model, skip=("output",))
    if "adapter" in kind:
        targets = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
        add_lora(model, LoraConfig(r=4, alpha=8, dropout=0.0, targets=targets), generator=generator)
        for _, layer in lora_layers(model):
            layer.lora_B.normal_(std=0.1, generator=generator)
    return model.bfloat16()


def in_float32(model: Llama) -> Llama:
    """The same weights, decoded where they are codes, in a model that computes in float32."""
    wide = copy.deepcopy(model).float()
    for module in list(wide.modules()):
        for name, child in module.named_children():
            if isinstance(child, Int8Linear):
                linear = nn.Linear(child.in_features, child.out_features, bias=False)
                linear.weight.copy_(child.dequantize())
                setattr(module, name, linear)
    return wide


def new_cache(model: Llama, max_len: int = 48, batch_size: int = 1, padding: Tensor | None = None) -> KVCache:
    dtype = model.tok_embeddings.weight.dtype
    return KVCache(model.config, batch_size, max_len, dtype=dtype, device="cpu", padding=padding)


def ids(n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 61, (1, n), generator=torch.Generator().manual_seed(seed))


def decode(model: Llama, tokens: Tensor, cache: KVCache) -> Tensor:
    """(T, V) logits of tokens (1, T) given one at a time."""
    return torch.cat([model(tokens[:, i : i + 1], cache=cache)[0] for i in range(tokens.shape[1])])


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every forward pass with a cache, whether it took the way of this module."""
    taken: list[bool] = []

    def spy(*arguments: object) -> Tensor | None:
        row = through_blocks(*arguments)
        taken.append(row is not None)
        return row

    monkeypatch.setattr(llama.model, "through_blocks", spy)
    return taken


def block_by_block(monkeypatch: pytest.MonkeyPatch, model: Llama, tokens: Tensor, cache: KVCache) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(llama.model, "through_blocks", lambda *_: None)
        return decode(model, tokens, cache)


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


# ---------------------------------------------------------------------------------------------------------------------
# The same answers


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_as_close_to_float32_as_block_by_block(
    n_kv_heads: int, kind: str, paths: list[bool], monkeypatch: pytest.MonkeyPatch, check_bound: Check
) -> None:
    """Rounding to bfloat16 in the same places makes errors of the same size, and of the same kind for the most part.

    2,440 logits and 40 keys and values of each head; their rms is meant, that of the float32 model's being 1.
    """
    model, tokens = make(kind, n_kv_heads=n_kv_heads), ids(40)
    caches = [new_cache(model), new_cache(model), new_cache(in_float32(model))]
    fused = decode(model, tokens, caches[0])
    assert paths == [True] * 40
    plain = block_by_block(monkeypatch, model, tokens, caches[1])
    exact = decode(in_float32(model), tokens, caches[2])
    assert [cache.length for cache in caches] == [40] * 3

    stored = [[cache.keys.float(), cache.values.float()] for cache in caches]
    parts = zip([fused, *stored[0]], [plain, *stored[1]], [exact, *stored[2]], strict=True)
    for name, (own, by_blocks, truth) in zip(("logits", "keys", "values"), parts, strict=True):
        own_error, error = rms(own - truth), rms(by_blocks - truth)
        # Different errors of the same distribution: a few hundred that are independent leave some 10 % to chance.
        check_bound(f"one token: {name}, error of block by block's", own_error / error, 1.3)
        # Two errors of the same size are √2 times that apart if they have nothing in common.
        check_bound(f"one token: {name}, distance of block by block's error", rms(own - by_blocks) / error, 1.5)
        # Per block 11 results are rounded on the way of any one number, by 2^-8/√3 of it (rms) at most; 2 blocks and
        # the head make 23 independent errors: √23 · 2^-8/√3 = 0.011. Adapters' A and B are rounded as well.
        check_bound(f"one token: {name}, error", own_error / rms(truth), 0.02)


@needs_compiler
@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_as_close_to_float32_as_without_a_compiler(
    kind: str, monkeypatch: pytest.MonkeyPatch, check_bound: Check
) -> None:
    model, tokens = make(kind), ids(40)
    exact, fused = (decode(m, tokens, new_cache(m)) for m in (in_float32(model), model))
    monkeypatch.setattr(rows, "_library", lambda: None)
    plain = decode(model, tokens, new_cache(model))
    # In bfloat16 as above. In int8 PyTorch's operators follow LLM.int8(), whose 8-bit rows cost as much again.
    limit = {"bfloat16": 1.3, "int8": 1.0}[kind]
    check_bound(f"one token: {kind} error, of PyTorch's", rms(fused - exact) / rms(plain - exact), limit)
    assert not torch.equal(fused, plain)


@needs_compiler
def test_long_context_on_several_threads(
    paths: list[bool], monkeypatch: pytest.MonkeyPatch, check_bound: Check
) -> None:
    """Past 256 tokens the attention of 8 heads of 32 is shared out; the number of threads changes no bit."""
    config = LlamaConfig(61, 256, 2, 8, 2, 96, max_seq_len=320)
    model = Llama(config).init_weights(torch.Generator().manual_seed(0), std=0.1).eval().bfloat16()
    tokens, steps = ids(300), ids(8, seed=1)
    full = new_cache(model, 308)
    model(tokens, cache=full)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(decode(model, steps, copy.deepcopy(full)))
    finally:
        torch.set_num_threads(before)
    assert paths == [False] + [True] * 16
    assert torch.equal(*results)
    wide = in_float32(model)
    cache = new_cache(wide, 308)
    wide(tokens, cache=cache)
    exact, plain = decode(wide, steps, cache), block_by_block(monkeypatch, model, steps, full)
    check_bound(
        "one token: 300 tokens later, error of block by block's", rms(results[0] - exact) / rms(plain - exact), 1.3
    )


@needs_compiler
@pytest.mark.parametrize("kind", ["bfloat16", "int8, adapter"])
def test_greedy_answers_are_the_same(kind: str, monkeypatch: pytest.MonkeyPatch, paths: list[bool]) -> None:
    """On a model that counts up in sevens for the most part, so that its best token is a tenth ahead of the second:
    roundings move a logit by a fiftieth."""
    model = make(kind, seed=1)
    model.tok_embeddings.weight.mul_(8)
    model.output.weight.copy_(model.tok_embeddings.weight.roll(7, dims=0))
    margins = []

    def answer() -> list[int]:
        return list(generate(model, [1], max_new_tokens=20, observe=lambda row: margins.append(row.topk(2).values)))

    fused = answer()
    assert paths == [True] * 20
    with monkeypatch.context() as patch:
        patch.setattr(llama.model, "through_blocks", lambda *_: None)
        assert answer() == fused
    best, second = torch.stack(margins).T
    assert ((best - second) > 0.08 * best).all() and len(set(fused)) > 10


@needs_compiler
def test_adapters_come_off_and_merge(paths: list[bool], check_bound: Check) -> None:
    tokens, adapted, base = ids(4), make("bfloat16, adapter"), make("bfloat16")
    with_adapter, without = decode(adapted, tokens, new_cache(base)), decode(base, tokens, new_cache(base))
    with adapters_disabled(adapted):
        assert torch.equal(decode(adapted, tokens, new_cache(base)), without)
    assert torch.equal(decode(adapted, tokens, new_cache(base)), with_adapter)
    assert rms(with_adapter - without) > 0.1 * rms(without)
    merged = decode(merge_lora(adapted), tokens, new_cache(base))
    assert not adapted.layers[0].attention.wq.row_matrix().lora_A
    # Merged weights are rounded to bfloat16 where the update apart was not: about the error of the whole, see above.
    check_bound("one token: merged vs adapter apart", rms(merged - with_adapter) / rms(merged), 0.03)
    assert all(paths)


@needs_compiler
def test_a_cache_that_is_truncated_and_continued(paths: list[bool]) -> None:
    model, tokens = make(), ids(9)
    cache = new_cache(model)
    first = decode(model, tokens, cache)
    cache.truncate(3)
    assert torch.equal(decode(model, tokens[:, 3:], cache), first[3:])
    assert all(paths)


@needs_compiler
def test_the_last_of_several_rows(paths: list[bool]) -> None:
    """Others have left: what remains is row 0 of a cache for three."""
    model, tokens = make(), ids(6)
    cache = new_cache(model, batch_size=3)
    model(tokens[:, :3].expand(3, -1), cache=cache)
    cache.drop(2)
    cache.drop(1)
    alone = new_cache(model)
    model(tokens[:, :3].expand(1, -1), cache=alone)
    alone.keys.copy_(cache.keys[:, :1]), alone.values.copy_(cache.values[:, :1])
    assert torch.equal(decode(model, tokens[:, 3:], cache), decode(model, tokens[:, 3:], alone))
    assert paths == [False] * 2 + [True] * 6
    assert torch.equal(cache.keys[:, :1], alone.keys) and not cache.keys[:, 1:, :, 3:].any()


@needs_compiler
def test_positions_are_those_given(paths: list[bool], monkeypatch: pytest.MonkeyPatch, check_bound: Check) -> None:
    model, token, caches = make(), ids(1), [new_cache(make()) for _ in range(2)]
    for positions in (torch.tensor([7]), torch.tensor([[9]])):
        model(token, positions=positions, cache=caches[0])
    with monkeypatch.context() as patch:
        patch.setattr(llama.model, "through_blocks", lambda *_: None)
        for position in (7, 9):
            model(token, positions=torch.tensor([position]), cache=caches[1])
    assert paths == [True, True]
    # Keys of the first layer: the same embedding, turned; a rounding of the product and one of the turn, twice.
    error = (caches[0].keys[0] - caches[1].keys[0]).abs().max() / caches[1].keys[0].abs().max()
    check_bound("one token: keys at positions given, vs block by block", error, 4 * 2.0**-8)


# ---------------------------------------------------------------------------------------------------------------------
# Where it does not apply


def try_one(model: Llama, cache: KVCache, tokens: Tensor | None = None) -> Tensor | None:
    tokens = ids(1) if tokens is None else tokens
    hidden = model.tok_embeddings(tokens)
    rotation = rotary_table(torch.arange(tokens.shape[1]), model.config.head_dim, model.config.rope_theta)
    return through_blocks(model.layers, hidden, rotation, cache)


@needs_compiler
def test_through_blocks_leaves_the_rest_of_the_cache_alone() -> None:
    model, cache = make(), new_cache(make())
    for stored in (cache.keys, cache.values):
        stored.fill_(9)
    hidden = model.tok_embeddings(ids(1))
    before = hidden.clone()
    assert try_one(model, cache) is not None and cache.length == 0  # counting is the model's
    assert torch.equal(hidden, before)
    for stored in (cache.keys, cache.values):
        assert (stored[:, :, :, 1:] == 9).all() and (stored[:, :, :, 0] != 9).all()


def foreign_layer(model: Llama) -> None:
    old = model.layers[1].feed_forward.w2
    model.layers[1].feed_forward.w2 = nn.Linear(old.in_features, old.out_features, bias=False, dtype=torch.bfloat16)


def biased_layer(model: Llama) -> None:
    model.layers[0].attention.wq = Int8Linear(32, 32, bias=True)


def dropping_out(model: Llama) -> None:
    add_lora(model, LoraConfig(r=2, alpha=2, dropout=0.5, targets=("q_proj",))).train()


def float32_gain(model: Llama) -> None:
    model.layers[0].ffn_norm.float()


@pytest.mark.parametrize("change", [foreign_layer, biased_layer, dropping_out, float32_gain], ids=lambda f: f.__name__)
def test_layers_it_does_not_know(change: Callable[[Llama], None]) -> None:
    model = make()
    change(model)
    assert_left_alone(model, new_cache(model))


def assert_left_alone(model: Llama, cache: KVCache, tokens: Tensor | None = None) -> None:
    length = cache.length
    assert try_one(model, cache, tokens) is None
    assert not cache.keys.any() and not cache.values.any() and cache.length == length


def test_inputs_it_does_not_know() -> None:
    model = make()
    assert_left_alone(model, new_cache(model), ids(2))
    assert_left_alone(model, new_cache(model, batch_size=2), ids(2).T)
    assert_left_alone(model, new_cache(model, batch_size=2))
    assert_left_alone(model, new_cache(model, padding=torch.tensor([1])))
    assert_left_alone(model.float(), new_cache(model))
    assert_left_alone(model.half(), new_cache(model))


def test_caches_it_does_not_know() -> None:
    model = make()
    cache = new_cache(model)
    cache.keys, cache.values = cache.keys.float(), cache.values.float()
    assert_left_alone(model, cache)
    cache = new_cache(model)
    cache.keys = cache.keys.transpose(2, 3).contiguous().transpose(2, 3)
    assert_left_alone(model, cache)


def test_where_somebody_wants_a_gradient() -> None:
    model = make()
    with torch.enable_grad():
        assert_left_alone(model, new_cache(model))


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_library", lambda: None)
    assert_left_alone(make(), new_cache(make()))


@pytest.mark.parametrize("limit", [95, 96])
@needs_compiler
def test_scores_have_room_on_the_stack(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two heads share a group; 48 tokens of each make 96 scores."""
    monkeypatch.setattr(rows, "MAX_SCORES", limit)
    assert (try_one(make(), new_cache(make())) is not None) == (limit == 96)


def test_overflow_is_what_it_was() -> None:
    model, cache = make(), new_cache(make(), max_len=2)
    decode(model, ids(2), cache)
    with pytest.raises(ValueError, match="holds 2 tokens, 3 are needed"):
        model(ids(1), cache=cache)
    assert cache.length == 2


@needs_compiler
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_a_cache_of_another_shape_is_not_given_to_c(n_kv_heads: int) -> None:
    """C would write past its buffers."""
    model = make()
    assert prepare(model.layers, new_cache(model)).usable
    if n_kv_heads != model.config.n_kv_heads:
        other = KVCache(replace(model.config, n_kv_heads=n_kv_heads), 1, 8, dtype=torch.bfloat16, device="cpu")
        assert not prepare(model.layers, other).usable
