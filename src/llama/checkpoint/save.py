"""Write a checkpoint, from a model or straight from another checkpoint, in Hugging Face's layout or Meta's.

Both start from the same thing, a `StoredTensor` per parameter, so that converting needs no model: tensors go from
file to file one at a time. In Hugging Face's layout the peak is one tensor. Meta's pickles are written by `torch.save`,
which wants a file's tensors all at once: a model of the right dtype on the CPU in one shard is written from where it
is, anything else costs one shard more.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from files import StoredTensor, json_text, staged_files, write_pickle, write_safetensors
from llama.checkpoint.configs import hf_config_dict, params_dict
from llama.checkpoint.load import check_float_dtype
from llama.checkpoint.names import hf_name, hf_rows, parameter_shapes, shard_dim
from llama.checkpoint.progress import transfer_progress
from llama.checkpoint.read import KINDS, Layout, open_checkpoint
from llama.config import LlamaConfig
from llama.model import Llama

MAX_SHARD_BYTES = 5 * 10**9  # the size at which transformers, too, begins a new file (until its version 5)
# Layout -> the file that makes a directory one of its checkpoints, and what an earlier save may have left there.
COMMITS: dict[str, tuple[str, tuple[str, ...]]] = {
    "hf": ("config.json", ("model*.safetensors", "model.safetensors.index.json")),
    "meta": ("params.json", ("consolidated.*.pth",)),
}


@torch.no_grad()
def save_checkpoint(
    model: Llama,
    path: str | Path,
    layout: Layout = "hf",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    dtype: torch.dtype | None = None,
    model_parallel: int = 1,
    progress: bool = False,
    read: Callable[[str], Tensor] | None = None,
) -> None:
    """Write a model's weights and shape as a directory that `load_checkpoint`, and its layout's own programs, load.

    Args:
        model: plain, on any device: adapters merged, nothing quantized.
        path: made if needed. A checkpoint of the same layout that is there is replaced, all at once.
        layout: "hf" (config.json, safetensors) or "meta" (params.json, consolidated.*.pth).
        max_shard_bytes: size at which Hugging Face's weights are cut into several files, between tensors.
        dtype: of the stored weights; None keeps each as it is.
        model_parallel: number of equal slices in Meta's layout.
        progress: show a bar on a terminal and one closing line anywhere, on stderr.
        read: fetches all values of the parameter of a name, on any device, where they do not lie in the model itself:
            those of a model that is spread over several processes. It is asked for one at a time.

    Raises:
        ValueError: the model holds adapters, quantized or missing weights; an option is out of range; or the directory
            holds a checkpoint of the other layout, by which this one would be shadowed.
        OSError: the system refuses the write; what was there before is unchanged.
    """
    tensors = _model_tensors(model, read)
    write_checkpoint(
        tensors,
        model.config,
        path,
        layout,
        max_shard_bytes,
        dtype=dtype,
        model_parallel=model_parallel,
        progress=progress,
    )


@torch.no_grad()
def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    layout: Layout = "hf",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    dtype: torch.dtype | None = None,
    model_parallel: int = 1,
    progress: bool = True,
) -> None:
    """Rewrite a checkpoint in another layout or dtype without ever holding it in memory. Arguments as above."""
    checkpoint = open_checkpoint(source)
    if Path(destination).resolve() == Path(source).resolve():
        raise ValueError(f"{destination} is the source itself: name another directory")
    write_checkpoint(
        checkpoint.tensors,
        checkpoint.config,
        destination,
        layout,
        max_shard_bytes,
        dtype=dtype,
        model_parallel=model_parallel,
        progress=progress,
    )


def write_checkpoint(
    tensors: Mapping[str, StoredTensor],
    config: LlamaConfig,
    path: str | Path,
    layout: Layout = "hf",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    dtype: torch.dtype | None = None,
    model_parallel: int = 1,
    progress: bool = False,
) -> None:
    """Write tensors that come when asked for, under own names and in own row order, as one checkpoint.

    Arguments and errors as for `save_checkpoint`.
    """
    folder = Path(path)
    if layout not in get_args(Layout):
        raise ValueError(f"layout = {layout!r} must be one of {', '.join(get_args(Layout))}")
    check_float_dtype(dtype)
    if model_parallel != 1 and layout == "hf":
        raise ValueError(f"model_parallel = {model_parallel} belongs to layout 'meta'; 'hf' has max_shard_bytes")
    _check_model_parallel(config, model_parallel)
    tensors = {name: cast(stored, dtype or stored.dtype) for name, stored in tensors.items()}
    if layout == "hf":
        content = hf_config_dict(config, tensors["tok_embeddings.weight"].dtype)
        write_hf_tensors(as_hf(tensors, config), folder, max_shard_bytes, lambda: content, progress=progress)
        return
    _check_shard_bytes(max_shard_bytes)
    with _staging(tensors, folder, layout, "layout meta", progress) as (staging, counted):
        _write_meta(counted, config, staging, model_parallel)


def write_hf_tensors(
    tensors: Mapping[str, StoredTensor],
    folder: Path,
    max_shard_bytes: int,
    config: Callable[[], Mapping[str, Any]],
    *,
    kind: str = "layout hf",
    progress: bool = False,
) -> None:
    """Write one safetensors file, or several with an index, and config.json.

    Args:
        tensors: under Hugging Face's names and in its row order, of any dtype.
        folder, max_shard_bytes, progress: as for `save_checkpoint`.
        config: gives config.json's content, when all tensors have been read.
        kind: what the closing line calls it.
    """
    _check_shard_bytes(max_shard_bytes)
    with _staging(tensors, folder, "hf", kind, progress) as (staging, counted):
        shards = list(_cut_into_shards(counted, max_shard_bytes))
        if len(shards) == 1:
            write_safetensors(staging / "model.safetensors", shards[0])
        else:
            _write_shards(shards, staging)
        (staging / "config.json").write_bytes(json_text(config()))


@contextmanager
def _staging(
    tensors: Mapping[str, StoredTensor], folder: Path, layout: Layout, kind: str, progress: bool
) -> Iterator[tuple[Path, dict[str, StoredTensor]]]:
    """A directory whose files become the checkpoint's, and the tensors, whose reading moves a progress bar."""
    _check_other_layout(folder, layout)
    total = sum(stored.nbytes for stored in tensors.values())
    last, stale = COMMITS[layout]
    with (
        transfer_progress(f"saving {folder.name}", f"saved {folder} ({kind})", total, enabled=progress) as moved,
        staged_files(folder, last=last, stale=stale) as staging,
    ):
        yield staging, {name: _counted(stored, moved) for name, stored in tensors.items()}


def _write_shards(shards: Sequence[Mapping[str, StoredTensor]], folder: Path) -> None:
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file_name, shard)
        weight_map |= dict.fromkeys(shard, file_name)
    total_size = sum(stored.nbytes for shard in shards for stored in shard.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_bytes(json_text(index))


def as_hf(tensors: Mapping[str, StoredTensor], config: LlamaConfig) -> dict[str, StoredTensor]:
    """The same tensors under Hugging Face's names and in its row order."""
    return {hf_name(name): _to_hf_rows(stored, name, config) for name, stored in tensors.items()}


def _to_hf_rows(stored: StoredTensor, name: str, config: LlamaConfig) -> StoredTensor:
    rows = hf_rows(name, config)
    if rows is None:
        return stored
    return StoredTensor(stored.shape, stored.dtype, lambda: stored.read().index_select(0, rows))


def _cut_into_shards(tensors: Mapping[str, StoredTensor], max_bytes: int) -> Iterator[dict[str, StoredTensor]]:
    """Runs of consecutive tensors of at most `max_bytes` together; a single tensor may be larger."""
    shard: dict[str, StoredTensor] = {}
    size = 0
    for name, stored in tensors.items():
        if shard and size + stored.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = stored
        size += stored.nbytes
    yield shard


def _write_meta(tensors: Mapping[str, StoredTensor], config: LlamaConfig, folder: Path, model_parallel: int) -> None:
    """params.json and one pickle per model-parallel rank. Meta stores a head even where it is tied."""
    (folder / "params.json").write_bytes(json_text(params_dict(config)))
    if config.tie_embeddings:
        tensors = {**tensors, "output.weight": tensors["tok_embeddings.weight"]}
    for rank in range(model_parallel):
        shard = {name: _rank_slice(stored.read(), name, rank, model_parallel) for name, stored in tensors.items()}
        write_pickle(folder / f"consolidated.{rank:02d}.pth", shard)


def _rank_slice(tensor: Tensor, name: str, rank: int, model_parallel: int) -> Tensor:
    """One rank's part of a parameter, with a storage of just its size: torch.save writes whole storages."""
    dim = shard_dim(name)
    part = tensor if dim is None else tensor.chunk(model_parallel, dim)[rank]
    return part.contiguous() if part.untyped_storage().nbytes() == part.nbytes else part.clone().contiguous()


def _model_tensors(model: Llama, read: Callable[[str], Tensor] | None) -> dict[str, StoredTensor]:
    """The model's parameters, once it is found to hold just those of a plain LLaMA of its config."""
    if not isinstance(model, Llama):
        raise ValueError(
            f"can only save a Llama, not a {type(model).__name__}: if it is wrapped, give the model inside"
        )
    held = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    shapes = parameter_shapes(model.config)
    if adapters := [name for name in held if ".lora_" in name]:
        raise ValueError(
            f"the model holds adapters ({adapters[0]} and {len(adapters) - 1} more): save them alone with "
            "lora.save_adapter, or merge them first with lora.merge_lora(model, unload=True)"
        )
    if quantized := [name for name in held if name.endswith(("weight_codes", "weight_absmax"))]:
        raise ValueError(
            f"the model holds int8 weights ({quantized[0]}, for one), from which the originals cannot be had back: "
            "load the 16-bit checkpoint without convert_linear and save that, or save the adapter alone"
        )
    wrong = [name for name in {**shapes, **held} if name not in held or shapes.get(name) != tuple(held[name].shape)]
    if wrong:
        raise ValueError(
            f"the model is not the plain LLaMA of its config: {', '.join(wrong)} differ in presence or shape"
        )
    if without := [name for name, tensor in held.items() if tensor.is_meta]:
        raise ValueError(
            f"the model has no numbers yet ({without[0]} is on the meta device): load or initialise it first"
        )
    if model.config.tie_embeddings:
        head, embedding = held.pop("output.weight"), held["tok_embeddings.weight"]
        if head is not embedding and not torch.equal(head, embedding):
            raise ValueError("the config ties the head to the embedding, but they differ: call model.tie_weights()")
    if read is None:
        return {name: StoredTensor.of(tensor) for name, tensor in held.items()}
    return {name: StoredTensor(tuple(tensor.shape), tensor.dtype, partial(read, name)) for name, tensor in held.items()}


def cast(stored: StoredTensor, dtype: torch.dtype) -> StoredTensor:
    """The same tensor in another dtype, on the CPU."""
    return StoredTensor(stored.shape, dtype, lambda: stored.read().to("cpu", dtype))


def _counted(stored: StoredTensor, moved: Callable[[int], None]) -> StoredTensor:
    """The same tensor, whose reading is reported."""

    def read() -> Tensor:
        moved(stored.nbytes)
        return stored.read()

    return StoredTensor(stored.shape, stored.dtype, read)


def _check_shard_bytes(max_shard_bytes: int) -> None:
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes = {max_shard_bytes} must be positive")


def _check_model_parallel(config: LlamaConfig, model_parallel: int) -> None:
    cut = {"n_heads": config.n_heads, "n_kv_heads": config.n_kv_heads, "hidden_dim": config.hidden_dim}
    cut |= {"dim": config.dim, "vocab_size": config.vocab_size}
    uneven = [f"{name} = {size}" for name, size in cut.items() if model_parallel < 1 or size % model_parallel]
    if uneven:
        raise ValueError(f"model_parallel = {model_parallel} must divide {', '.join(uneven)}")


def _check_other_layout(folder: Path, layout: Layout) -> None:
    """Refuse to put one layout's checkpoint beside another's: a reader could only guess which is meant."""
    for config_file, pattern in KINDS:
        if (config_file == "params.json") != (layout == "meta") and any(folder.glob(pattern)):
            raise ValueError(f"{folder} holds {pattern}, a checkpoint in another layout: choose another directory")
