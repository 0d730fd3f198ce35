"""Write a random LLaMA of a published shape, in a format that such models ship in, for benchmarks that need real sizes.

    python benchmarks/make_checkpoint.py 7B DIR --format bin --dtype float16

    safetensors   config.json, model-0000i-of-0000n.safetensors, index        Hugging Face
    bin           config.json, pytorch_model-0000i-of-0000n.bin, index        Hugging Face, older; so medalpaca-7b ships
    meta          params.json, consolidated.0i.pth                            Meta, one file per model-parallel rank

Matrices are windows onto one file of normal numbers of standard deviation 0.02, each beginning at another page of it.
They are mapped, not held: torch.save wants all of a shard at once (13.5 GB of a 7B in Meta's format), and so gets it
without memory. Such a model says nothing, but its numbers spread as a real one's do, and no two matrices are equal.
"""

import mmap
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BufferedRandom
from math import prod
from pathlib import Path
from typing import Annotated, Literal, cast

import torch
import tyro
from torch import Tensor

from files import StoredTensor, json_text, whole_folder, write_pickle, write_safetensors
from llama import TOKENIZER_FILE, LlamaConfig
from llama.checkpoint import hf_config_dict
from llama.checkpoint.configs import params_dict
from llama.checkpoint.names import hf_name, parameter_shapes, shard_dim
from llama.checkpoint.progress import transfer_progress
from recipe import plain_errors

STD = 0.02
OUTLIER_GAIN = 20.0
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
META_RANKS = {"13B": 2, "33B": 4, "65B": 8, "LLaMA-2-13B": 2, "LLaMA-2-70B": 8}  # as published; the others come whole
HF_SHARDS = 3

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Options:
    """Write a random LLaMA of a published shape, as such models ship."""

    shape: Annotated[str, tyro.conf.Positional]
    """Its name: 7B, 13B, 33B, 65B, LLaMA-2-7B, TinyLlama-1.1B, ..."""
    folder: Annotated[Path, tyro.conf.Positional]
    """Directory to make."""
    format: Literal["safetensors", "bin", "meta"] = "safetensors"
    """Hugging Face's (config.json), in safetensors or in pickles, or Meta's (params.json)."""
    dtype: Literal["bfloat16", "float16"] = "bfloat16"
    shards: int = 0
    """Files to cut the weights into; 0: three for Hugging Face's formats, for Meta's as many as were published."""
    outliers: int = 0
    """Columns of every norm's gain that are 20 times larger, so that LLM.int8() has outlier columns to find."""
    tokenizer: Path | None = None
    """A tokenizer.model to put beside the weights."""
    seed: int = 0


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write the checkpoint."""
    options = tyro.cli(Options, args=arguments, description=__doc__)
    with plain_errors():
        write_checkpoint(options)


def write_checkpoint(options: Options) -> None:
    """Write it whole, or leave nothing."""
    config = LlamaConfig.named(options.shape)
    if options.folder.exists():
        raise ValueError(f"{options.folder} is there already: remove it, or name another directory")
    if options.shards < 0 or options.outliers < 0:
        raise ValueError(f"shards = {options.shards} and outliers = {options.outliers} must not be negative")
    shapes = parameter_shapes(config)
    total = sum(map(prod, shapes.values())) * DTYPES[options.dtype].itemsize
    with (
        whole_folder(options.folder) as draft,
        tempfile.TemporaryFile(dir=options.folder.parent) as scratch,
        transfer_progress(f"writing {options.shape}", f"wrote {options.folder}", total) as moved,
    ):
        weights = RandomWeights(cast(BufferedRandom, scratch), shapes.values(), options)
        write = write_meta if options.format == "meta" else write_hf
        write(draft, config, shapes, weights, options, moved)
        if options.tokenizer is not None:
            shutil.copyfile(options.tokenizer, draft / TOKENIZER_FILE)


class RandomWeights:
    """Random tensors of any size up to the largest of `shapes`: matrices about 0, the norms' gains about 1."""

    def __init__(self, file: BufferedRandom, shapes: Iterable[tuple[int, ...]], options: Options) -> None:
        self.file = file
        self.dtype = DTYPES[options.dtype]
        self.outliers = options.outliers
        self.generator = torch.Generator().manual_seed(options.seed)
        self.offset = 0
        sizes = list(map(prod, shapes))
        # Each tensor, of every rank, begins a page after the one before.
        room = len(sizes) * max(1, options.shards, *META_RANKS.values()) * mmap.ALLOCATIONGRANULARITY
        numbers = torch.randn(max(sizes) + room, generator=self.generator).mul_(STD).to(self.dtype)
        file.write(numbers.view(torch.uint8).numpy().data)
        file.flush()

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor of that shape, which is none drawn before."""
        return self._gain(*shape) if len(shape) == 1 else self._window(shape)

    def _window(self, shape: tuple[int, ...]) -> Tensor:
        n_bytes = prod(shape) * self.dtype.itemsize
        window = mmap.mmap(self.file.fileno(), n_bytes, access=mmap.ACCESS_COPY, offset=self.offset)
        self.offset += mmap.ALLOCATIONGRANULARITY
        return torch.frombuffer(window, dtype=self.dtype).view(shape)

    def _gain(self, width: int) -> Tensor:
        gain = torch.randn(width, generator=self.generator).mul_(STD).add_(1)
        # The same columns in every norm: a large feature stays one through the residual stream.
        gain[torch.arange(self.outliers) * width // max(1, self.outliers)] *= OUTLIER_GAIN
        return gain.to(self.dtype)


def write_hf(
    folder: Path,
    config: LlamaConfig,
    shapes: Shapes,
    weights: RandomWeights,
    options: Options,
    moved: Callable[[int], None],
) -> None:
    """config.json and one file of weights, or several with an index."""
    (folder / "config.json").write_bytes(json_text(hf_config_dict(config, weights.dtype)))
    stem, suffix = ("model", "safetensors") if options.format == "safetensors" else ("pytorch_model", "bin")
    count = options.shards or HF_SHARDS
    shards: list[dict[str, Tensor]] = [{} for _ in range(count)]
    total = sum(map(prod, shapes.values()))
    done = 0
    for name, shape in shapes.items():
        shard = shards[done * count // total]
        shard[hf_name(name)] = weights.draw(shape)
        if suffix == "bin" and name.endswith("wq.weight"):
            shard[hf_name(name).replace("q_proj.weight", "rotary_emb.inv_freq")] = rotary_frequencies(config)
        done += prod(shape)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"{stem}.{suffix}" if count == 1 else f"{stem}-{number:05d}-of-{count:05d}.{suffix}"
        if suffix == "bin":
            write_pickle(folder / file_name, shard)
        else:
            write_safetensors(folder / file_name, {name: StoredTensor.of(tensor) for name, tensor in shard.items()})
        weight_map |= dict.fromkeys(shard, file_name)
        moved(sum(tensor.nbytes for tensor in shard.values()))
    if count > 1:
        index = {"metadata": {"total_size": total * weights.dtype.itemsize}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_bytes(json_text(index))


def write_meta(
    folder: Path,
    config: LlamaConfig,
    shapes: Shapes,
    weights: RandomWeights,
    options: Options,
    moved: Callable[[int], None],
) -> None:
    """params.json and one pickle per rank, each with an equal slice of every matrix."""
    (folder / "params.json").write_bytes(json_text(params_dict(config)))
    ranks = options.shards or META_RANKS.get(options.shape, 1)
    vectors = {name: weights.draw(shape) for name, shape in shapes.items() if len(shape) == 1}  # every rank has them
    for rank in range(ranks):
        shard = {}
        for name, shape in shapes.items():
            cut = shard_dim(name)
            if any(size % ranks for dim, size in enumerate(shape) if dim == cut):
                raise ValueError(f"shards = {ranks} must divide {name}, which is {shape}")
            part = tuple(size // ranks if dim == cut else size for dim, size in enumerate(shape))
            shard[name] = vectors[name] if name in vectors else weights.draw(part)
        shard["rope.freqs"] = rotary_frequencies(config).to(weights.dtype)
        write_pickle(folder / f"consolidated.{rank:02d}.pth", shard)
        moved(sum(tensor.nbytes for tensor in shard.values()))


def rotary_frequencies(config: LlamaConfig) -> Tensor:
    """θ^(−2i/D), which files of that age store and nobody needs: (D/2,) float32."""
    return config.rope_theta ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)


if __name__ == "__main__":
    main()
