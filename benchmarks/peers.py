"""Our model and its peers behind one small interface, all made from the same checkpoint folder.

Peers at their best on a CPU, as tried at the 1.1B shape: transformers with its weights copied out of the mapped file
into memory of large pages, as ours are (6 and 10 % faster), its default attention and its growing cache (a preallocated
one and eager attention make no difference, torch.compile a loss); bitsandbytes without its warning at every product.

LLM.int8() is measured with outliers and without, on two variants of the checkpoint that every program loads. Outliers
come in through the gains of the norms that feed the linear layers: the same few channels of each, 20 times larger. In
both variants the feed-forward's up projection is narrowed: the product of two normal numbers, gate and up, often
exceeds 6, so that a plain random model has over a hundred outlier columns there in a prompt of 512 tokens.

Letters: T tokens, V vocabulary.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from harness import relative_error
from torch import Tensor, nn

from int8 import THRESHOLD, Int8Linear, outlier_columns
from llama import KVCache, Llama, generate, load_checkpoint, save_checkpoint
from native import advise_huge_pages

DTYPE = torch.bfloat16
OUTLIERS = (0, 6)  # channels; the paper finds at most 7 up to 13B parameters
OUTLIER_GAIN = 20.0
UP_SCALE = 1 / 8  # a power of two: exact in bfloat16

BASELINE = "transformers bf16"

# Largest relative errors of the logits, against transformers in bfloat16, with which a timing still means something.
# 22 random layers make 1 % of bfloat16's rounding and 3 to 4 % of 8-bit codes'; unrelated logits are 140 % apart.
PARITY_BOUNDS = {"ours bf16": 0.03, BASELINE: 0.03, "ours int8": 0.1, "bitsandbytes int8": 0.1}


class Ours:
    """This project's model in bfloat16, or with its blocks in int8.

    Attributes:
        what: its name in a table.
        outliers: channels raised in the variant it has loaded.
        read: the modules whose weights every token reads: all but the embedding, where it looks up one row.
    """

    def __init__(self, folders: dict[int, Path], outliers: int, device: torch.device, *, int8: bool) -> None:
        self.what = "ours int8" if int8 else "ours bf16"
        self.outliers = outliers
        self.device = device
        convert = partial(Int8Linear.from_linear, threshold=THRESHOLD) if int8 else None
        self.model = load_checkpoint(
            folders[outliers], dtype=DTYPE, device=device, convert_linear=convert, progress=False
        )
        self.read: list[nn.Module] = [self.model.layers, self.model.norm, self.model.output]

    def answer(self, ids: Sequence[int], n_tokens: int) -> Iterator[int]:
        """Greedy continuation by so many tokens; the prompt is read when the first of them is asked for."""
        return generate(self.model, ids, max_new_tokens=n_tokens)

    @torch.no_grad()
    def logits(self, ids: Sequence[int], n_steps: int) -> Tensor:
        """(n_steps + 1, V) float32: after all ids but the last n_steps, read at once, and after each of those."""
        cache = KVCache(self.model.config, 1, len(ids), dtype=DTYPE, device=self.device)
        parts = prompt_and_steps(ids, n_steps, self.device)
        return torch.cat([self.model(part, cache=cache)[:, -1] for part in parts])


class Transformers:
    """transformers' model in bfloat16, or with its blocks in bitsandbytes' int8. The rest as for `Ours`."""

    def __init__(self, folders: dict[int, Path], outliers: int, device: torch.device, *, int8: bool) -> None:
        import transformers

        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        transformers.utils.logging.disable_progress_bar()
        self.what = "bitsandbytes int8" if int8 else BASELINE
        self.outliers = outliers
        self.device = device
        quantized = transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=THRESHOLD) if int8 else None
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folders[outliers], dtype=DTYPE, device_map=str(device), quantization_config=quantized
        ).eval()
        if not int8:
            for parameter in self.model.parameters():
                parameter.data = advise_huge_pages(torch.empty_like(parameter)).copy_(parameter)
        self.read: list[nn.Module] = [self.model.model.layers, self.model.model.norm, self.model.lm_head]

    def answer(self, ids: Sequence[int], n_tokens: int) -> Iterator[int]:
        cache = self._new_cache()
        tokens = torch.tensor([ids], device=self.device)
        for _ in range(n_tokens):
            tokens = self._next_logits(tokens, cache).argmax(-1, keepdim=True)
            yield int(tokens)

    def logits(self, ids: Sequence[int], n_steps: int) -> Tensor:
        cache = self._new_cache()
        return torch.cat([self._next_logits(part, cache) for part in prompt_and_steps(ids, n_steps, self.device)])

    @torch.no_grad()
    def _next_logits(self, tokens: Tensor, cache: Any) -> Tensor:
        length = cache.get_seq_length()
        logits = self.model(tokens, cache=cache, logits_to_keep=1).logits[:, -1].float()
        # Older versions call the argument something else, and transformers ignores names that it does not know.
        if cache.get_seq_length() != length + tokens.shape[1]:
            raise ValueError("transformers ignored the cache it was given: install the version in constraints.txt")
        return logits

    def _new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)


Contender = Ours | Transformers
Work = Callable[[], object]


def write_variants(base: Path, scratch: Path) -> dict[int, Path]:
    """Number of outlier channels -> a folder with that variant of the checkpoint; 2.2 GB each at 1.1B parameters."""
    folders = {n: scratch / f"{n}-outliers" for n in OUTLIERS}
    for n, folder in folders.items():
        save_checkpoint(raise_outliers(load_checkpoint(base, dtype=DTYPE, progress=False), n), folder)
    return folders


@torch.no_grad()
def raise_outliers(model: Llama, n: int) -> Llama:
    """Give the model n outlier channels, and none beside them, as this module's first lines say; changed in place."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith(("attention_norm.weight", "ffn_norm.weight")):
            tensor[torch.arange(n) * len(tensor) // max(1, n)] *= OUTLIER_GAIN
        elif name.endswith(("w3.weight", "w3.weight_absmax")):  # of a model in int8, the scales
            tensor.mul_(UP_SCALE)
    return model


def line_up(folders: dict[int, Path], device: torch.device, *, skip_peers: bool) -> dict[str, Contender]:
    """Everything there is to compare, by a unique name; 9 GB for 1.1B parameters."""
    programs = (Ours,) if skip_peers else (Ours, Transformers)
    contenders: list[Contender] = []
    for program in programs:
        contenders.append(program(folders, 0, device, int8=False))
        contenders += [program(folders, n, device, int8=True) for n in folders]
    return {f"{contender.what}, {contender.outliers}": contender for contender in contenders}


def check_parity(
    folders: dict[int, Path], contenders: dict[str, Contender], ids: Sequence[int], n_steps: int
) -> tuple[dict[str, float], list[str]]:
    """Compare logits with those of transformers in bfloat16 on the same variant.

    Returns:
        Each contender's relative error, and what was found of the outliers, in sentences.

    Raises:
        ValueError: an error is too large for a timing to mean anything.
    """
    errors: dict[str, float] = {}
    notes = []
    for n in folders:
        reference = Transformers(folders, n, next(iter(contenders.values())).device, int8=False)
        expected = reference.logits(ids, n_steps)
        found = outliers_found(reference, ids)
        del reference
        listed = ", ".join(f"{name} {every:.1f} ({single:.1f})" for name, (every, single) in found.items())
        notes.append(f"{n} outlier channels: columns found in the whole prompt (in one row), by linear layer: {listed}")
        for name, contender in contenders.items():
            if contender.outliers == n:
                logits = contender.logits(ids, n_steps)
                errors[name] = relative_error(logits, expected)
    if wrong := {n: error for n, error in errors.items() if not error <= PARITY_BOUNDS[contenders[n].what]}:
        raise ValueError(f"logits too far from transformers' for a timing to mean anything: {wrong}; nothing was timed")
    return errors, notes


@torch.no_grad()
def outliers_found(reference: Transformers, ids: Sequence[int]) -> dict[str, tuple[float, float]]:
    """What `outlier_columns` finds in the inputs of a bfloat16 model's linear layers while it reads a prompt.

    Returns:
        A linear layer's name within its block -> outlier columns of all rows together, and of a single row, as a
        one-token step has it; means over layers and rows.
    """
    counts: dict[str, list[tuple[int, float]]] = defaultdict(list)

    def count(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0][0]  # (T, in-features)
        single = fmean(len(outlier_columns(row, THRESHOLD)) for row in rows)
        counts[name.rpartition(".")[2]].append((len(outlier_columns(rows, THRESHOLD)), single))

    hooks = [
        module.register_forward_pre_hook(partial(count, name))
        for name, module in reference.model.model.layers.named_modules()
        if isinstance(module, nn.Linear)
    ]
    reference.logits(ids, 0)
    for hook in hooks:
        hook.remove()
    return {name: (fmean(a for a, _ in pairs), fmean(b for _, b in pairs)) for name, pairs in counts.items()}


def prompt_and_steps(ids: Sequence[int], n_steps: int, device: torch.device) -> list[Tensor]:
    """The ids as (1, T) tensors: all but the last n_steps together, then those one by one."""
    tokens = torch.tensor([ids], device=device)
    return list(tokens.split([len(ids) - n_steps, *[1] * n_steps], dim=1))


def bitsandbytes_linear(linear: nn.Linear) -> nn.Module:
    """A frozen `Linear8bitLt` of that weight (N, K), quantized where it lies; the linear layer is left alone."""
    import bitsandbytes

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of bfloat16 at every product
    sizes = (linear.in_features, linear.out_features)
    options = {"bias": False, "has_fp16_weights": False, "threshold": THRESHOLD, "device": "meta"}
    layer = bitsandbytes.nn.Linear8bitLt(*sizes, **options)
    codes, absmax, _ = bitsandbytes.functional.int8_vectorwise_quant(linear.weight.detach().half())
    layer.weight = bitsandbytes.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=absmax)
    return layer


def random_ids(n_tokens: int, vocab_size: int) -> list[int]:
    """A prompt for a random model."""
    return torch.randint(vocab_size, (n_tokens,), generator=torch.Generator().manual_seed(0)).tolist()


def in_turn(contenders: Mapping[str, Contender], works: Mapping[str, Work], device: torch.device) -> dict[str, Work]:
    """The works, each right after its contender has read a single token; a work of no contender runs twice.

    Memory in large pages that lay idle for some seconds, while others had their turn, was seen to come at a quarter of
    its speed when it is first read again. That first reading is timed under a name that nobody looks up. A work is over
    when the device is done with it.
    """

    def finished(work: Work) -> Work:
        def run() -> None:
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return run

    turns: dict[str, Work] = {}
    for name, work in works.items():
        turns[f"{name}, waking"] = finished(partial(first_token, contenders[name], [0]) if name in contenders else work)
        turns[name] = finished(work)
    return turns


def first_token(contender: Contender, ids: Sequence[int]) -> int:
    """Read the prompt and pick one token."""
    return next(contender.answer(ids, 1))


def result_name(name: str, device: torch.device, skip_peers: bool) -> str:
    """Of the file for a run's results; a run on another device, or without peers, does not replace the main one."""
    return "-".join([name, *([device.type] if device.type != "cpu" else []), *(["ours"] if skip_peers else [])])


def module_bytes(modules: Iterable[nn.Module]) -> int:
    """Of parameters and buffers."""
    return sum(tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers()))
