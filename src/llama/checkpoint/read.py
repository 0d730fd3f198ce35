"""Find out what a directory holds and present it in one form: own names, own rotary layout, nothing read yet.

    config.json + model*.safetensors     (+ model.safetensors.index.json)        Hugging Face
    config.json + pytorch_model*.bin     (+ pytorch_model.bin.index.json)        Hugging Face, older
    params.json + consolidated.*.pth     one file per model-parallel rank        Meta

The first that is there is taken. Before anything is allocated, every tensor that the config implies is found to be
there in the right shape, and nothing else; whatever is wrong is said in one message.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from files import StoredTensor, UnsuitableFileError, open_tensor_file, read_json_object
from llama.checkpoint.configs import QUANTIZED, config_from_hf, config_from_params
from llama.checkpoint.hf_files import hf_tensors
from llama.checkpoint.names import hf_name, hf_rows, is_ignored, parameter_shapes, shard_dim
from llama.config import LlamaConfig

Layout = Literal["hf", "meta"]
Shapes = dict[str, tuple[int, ...]]

# The pairs of (file with the config, files with the weights) by which a checkpoint is known.
KINDS: tuple[tuple[str, str], ...] = (
    ("config.json", "model*.safetensors"),
    ("config.json", "pytorch_model*.bin"),
    ("params.json", "consolidated.*.pth"),
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, opened and checked but not read.

    Attributes:
        folder: where it lies.
        config: its shape.
        description: its format in words.
        tensors: own name -> tensor in own layout, for every parameter in the model's order; not the head if it is tied.
    """

    folder: Path
    config: LlamaConfig
    description: str
    tensors: dict[str, StoredTensor]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open the checkpoint in a directory and check that it is complete.

    Raises:
        FileError: there is none; a file is damaged; tensors are missing, unexpected or misshapen (all are listed); or
            the config describes another kind of model.
    """
    folder = _existing_folder(path)
    found = _find(folder)
    if found is None:
        kinds = "; or ".join(f"{config_file} with {pattern}" for config_file, pattern in KINDS)
        raise UnsuitableFileError(
            f"it holds no LLaMA checkpoint: looked for {kinds}", file=folder, remedy="name the directory of one"
        )
    config_file, weights = found
    return _open_meta(folder, weights) if config_file == "params.json" else _open_hf(folder, weights)


def read_config(path: str | Path) -> LlamaConfig:
    """The shape of the model in a directory, from its `config.json` or `params.json`. Weights need not be there,
    unless `params.json` leaves the vocabulary size to them.

    Raises:
        FileError: there is neither file, or it describes another kind of model.
    """
    folder = _existing_folder(path)
    found = _find(folder)
    there = [name for name in ("config.json", "params.json") if (folder / name).is_file()]
    if not there:
        raise UnsuitableFileError(
            "it holds neither config.json nor params.json", file=folder, remedy="is it a checkpoint's directory?"
        )
    if (found[0] if found else there[0]) == "config.json":
        return _hf_config(folder, mark=QUANTIZED)
    return _meta_config(folder, [open_tensor_file(file) for file in found[1]] if found else [])


def _find(folder: Path) -> tuple[str, list[Path]] | None:
    """The config's name and the weight files of the first kind of checkpoint that is there."""
    for config_file, pattern in KINDS:
        if (folder / config_file).is_file() and (weights := sorted(folder.glob(pattern))):
            return config_file, weights
    return None


def _existing_folder(path: str | Path) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise UnsuitableFileError(
            "it is not a directory",
            file=folder,
            remedy="give the one that holds config.json or params.json and the weights",
        )
    return folder


def _hf_config(folder: Path, mark: str | None = None) -> LlamaConfig:
    file = folder / "config.json"
    return config_from_hf(read_json_object(file), str(file), mark=mark)


def _open_hf(folder: Path, weights: Sequence[Path]) -> Checkpoint:
    config = _hf_config(folder)
    stored = hf_tensors(folder, weights)
    check_depth(folder / "config.json", config, stored)
    shapes = {hf_name(name): shape for name, shape in parameter_shapes(config).items()}
    check_hf_fit(folder, config, shapes, stored)
    tensors = {name: _from_hf_rows(stored[hf_name(name)], name, config) for name in _own_names(config)}
    kind = "safetensors" if weights[0].suffix == ".safetensors" else "PyTorch"
    return Checkpoint(folder, config, f"Hugging Face layout, {kind}", tensors)


def check_depth(file: Path, config: LlamaConfig, stored: Mapping[str, StoredTensor]) -> None:
    """Refuse a config of more blocks than there are tensors before a skeleton of that many blocks is built."""
    if config.n_layers > len(stored):
        raise UnsuitableFileError(
            f"it describes {config.n_layers} blocks, but the weights beside it are {len(stored)} tensors",
            file=file,
            remedy="is it the right one?",
        )


def check_hf_fit(
    folder: Path,
    config: LlamaConfig,
    shapes: Shapes,
    stored: Mapping[str, StoredTensor],
    known: Mapping[str, str] | None = None,
) -> None:
    """As `check_fit`, by Hugging Face's names: a tied head may be left out, and equals the embedding if it is not."""
    head, embedding = hf_name("output.weight"), hf_name("tok_embeddings.weight")
    if config.tie_embeddings and head not in stored:
        shapes = {name: shape for name, shape in shapes.items() if name != head}
    check_fit(folder, shapes, stored, known)
    if config.tie_embeddings and head in stored and not _equal(stored[head], stored[embedding]):
        raise UnsuitableFileError(
            f"config.json ties the head to the embedding, but {head} differs from {embedding}",
            file=folder,
            remedy="if the stored head is the right one, set tie_word_embeddings to false",
        )


def _own_names(config: LlamaConfig) -> list[str]:
    """Names of the parameters that have values of their own."""
    return [name for name in parameter_shapes(config) if not (config.tie_embeddings and name == "output.weight")]


def _from_hf_rows(stored: StoredTensor, name: str, config: LlamaConfig) -> StoredTensor:
    rows = hf_rows(name, config)
    if rows is None:
        return stored
    own_rows = rows.argsort()
    return StoredTensor(stored.shape, stored.dtype, lambda: stored.read().index_select(0, own_rows))


def _open_meta(folder: Path, weights: Sequence[Path]) -> Checkpoint:
    expected_files = [f"consolidated.{rank:02d}.pth" for rank in range(len(weights))]
    if [file.name for file in weights] != expected_files:
        raise UnsuitableFileError(
            f"the shards must be numbered without a gap ({expected_files[0]} to {expected_files[-1]}), "
            f"but there are {', '.join(file.name for file in weights)}",
            file=folder,
            remedy="download those that are missing",
        )
    ranks = [open_tensor_file(file) for file in weights]
    config = _meta_config(folder, ranks)
    check_depth(folder / "params.json", config, ranks[0])
    shapes = parameter_shapes(config)
    joined: dict[str, StoredTensor] = {}
    problems: dict[str, str] = {}
    for name in dict.fromkeys(name for rank in ranks for name in rank if not is_ignored(name)):
        absent = [file.name for file, rank in zip(weights, ranks, strict=True) if name not in rank]
        parts = [rank[name] for rank in ranks if name in rank]
        if name in shapes and absent:
            problems[name] = f"missing: {name} in {', '.join(absent)}"
        elif name in shapes and (error := _join_error(parts, shard_dim(name))):
            problems[name] = f"misshapen: {name}: {error}"
        joined[name] = join(parts, shard_dim(name))
    check_fit(folder, shapes, joined, problems)
    names = _own_names(config)
    ranks_in_words = f"{len(ranks)} model-parallel shard{'s' if len(ranks) > 1 else ''}"
    return Checkpoint(folder, config, f"Meta's layout, {ranks_in_words}", {name: joined[name] for name in names})


def _meta_config(folder: Path, ranks: Sequence[dict[str, StoredTensor]]) -> LlamaConfig:
    """From `params.json` and, for what it leaves out, the weights: the vocabulary's size, and whether the head is tied.

    Meta always stores a head. One that equals the embedding in every bit is the export of a tied model, and is tied
    again, so that fine-tuning keeps the two equal.
    """
    file = folder / "params.json"
    raw = read_json_object(file)
    embeddings = [rank["tok_embeddings.weight"] for rank in ranks if "tok_embeddings.weight" in rank]
    heads = [rank["output.weight"] for rank in ranks if "output.weight" in rank]
    rows = embeddings[0].shape[0] if embeddings and len(embeddings[0].shape) == 2 else None
    complete = len(embeddings) == len(heads) == len(ranks) > 0
    return config_from_params(raw, embedding_rows=rows, tied=complete and _is_tied(embeddings, heads), origin=str(file))


def _is_tied(embeddings: Sequence[StoredTensor], heads: Sequence[StoredTensor]) -> bool:
    """Whether embedding (cut into columns) and head (cut into rows) are equal."""
    if _join_error(embeddings, 1) or _join_error(heads, 0):
        return False
    return _equal(join(embeddings, 1), join(heads, 0))


def _equal(a: StoredTensor, b: StoredTensor) -> bool:
    return (a.shape, a.dtype) == (b.shape, b.dtype) and torch.equal(a.read(), b.read())


def _join_error(parts: Sequence[StoredTensor], dim: int | None) -> str | None:
    """Why the ranks' slices of one matrix cannot be put together, or None if they can."""
    shapes = {part.shape for part in parts}
    dtypes = {part.dtype for part in parts}
    if len(shapes) > 1 or len(dtypes) > 1:
        return f"the shards disagree: {', '.join(f'{part.shape} {part.dtype}' for part in parts)}"
    if dim is not None and len(parts[0].shape) != 2:
        return f"{parts[0].shape} is not a matrix"
    return None


def join(parts: Sequence[StoredTensor], dim: int | None) -> StoredTensor:
    """One tensor from its slices along `dim`; from equal copies (None), the first."""
    first = parts[0]
    if dim is None or len(parts) == 1 or len(first.shape) != 2:
        return first
    shape = list(first.shape)
    shape[dim] *= len(parts)

    def read() -> Tensor:
        return torch.cat([part.read() for part in parts], dim)

    return StoredTensor(tuple(shape), first.dtype, read)


def check_fit(
    folder: Path, shapes: Shapes, stored: Mapping[str, StoredTensor], known: Mapping[str, str] | None = None
) -> None:
    """Compare what the config implies with what is stored, and raise everything that is wrong at once.

    Args:
        known: name -> what was found wrong with it already.
    """
    problems = dict(known or {})
    for name, shape in shapes.items():
        if name in problems:
            continue
        if name not in stored:
            problems[name] = f"missing: {name} {shape}"
        elif stored[name].shape != shape:
            problems[name] = f"misshapen: {name} is {stored[name].shape}, the config implies {shape}"
        elif not stored[name].dtype.is_floating_point:
            problems[name] = f"not floating-point: {name} is {stored[name].dtype}"
    problems |= {name: f"unexpected: {name} {tensor.shape}" for name, tensor in stored.items() if name not in shapes}
    if problems:
        count = f"{len(problems)} tensor{'s do' if len(problems) > 1 else ' does'} not fit the config beside them"
        raise UnsuitableFileError(f"{count}: is it the right one?", file=folder, details=list(problems.values()))
