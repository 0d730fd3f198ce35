"""An 8-bit base on disk: half the bytes of 16 bits, and a model that is mapped instead of read.

    model.layers.0.mlp.up_proj.weight          int8, (N, K)       codes = round(127 · W / absmax), ties to even
    model.layers.0.mlp.up_proj.SCB             float32, (N,)      absmax of each row of W
    model.layers.0.mlp.up_proj.weight_format   uint8, () = 0      codes lie row by row

This is how transformers stores a model that bitsandbytes holds in int8, and each loads what the other wrote. Embedding,
head and norms stay as they were. Names and row order are Hugging Face's; config.json says so under
`quantization_config`, with the threshold from which features are multiplied in 16 bits.

The codes are those of `Int8Linear.from_linear` on the stored weights: loaded from here or quantized while loading, the
model is the same in every bit. bitsandbytes rounds a weight to float16 before: of a float16 checkpoint its codes are
ours, of bfloat16 too but for weights below 2⁻¹⁷ or above 65,504; of float32 some differ by one.

Loading maps the files and computes with their pages: the codes of five of a block's seven products, and whatever else
has the wanted dtype, take no memory of their own and come from the disk when first used. The rows of queries and keys
stand in another order here, and are copied. The files must stay as they are while the model is in use (whoever
replaces them by `convert.py` or a download puts new files into their place, and leaves the mapped ones alone).

Letters: N output features, K input features.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from files import DamagedFileError, StoredTensor, UnsuitableFileError, read_json_object, shown
from int8 import THRESHOLD, Int8Linear
from llama import Llama, LlamaConfig
from llama.checkpoint import hf_config_dict, open_checkpoint
from llama.checkpoint.configs import QUANTIZED, config_from_hf
from llama.checkpoint.hf_files import hf_tensors, read_weight_map
from llama.checkpoint.load import check_float_dtype, is_block_linear, place
from llama.checkpoint.names import hf_name, hf_rows, parameter_shapes, skeleton
from llama.checkpoint.progress import transfer_progress
from llama.checkpoint.read import check_depth, check_hf_fit
from llama.checkpoint.save import MAX_SHARD_BYTES, as_hf, write_hf_tensors

METHOD = "bitsandbytes"
ROW_BY_ROW = 0


@torch.no_grad()
def write_int8_checkpoint(
    source: str | Path,
    destination: str | Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    threshold: float = THRESHOLD,
    progress: bool = True,
) -> None:
    """Write a checkpoint's blocks in int8, tensor by tensor.

    Args:
        source: directory of a 16- or 32-bit checkpoint in any layout.
        destination: directory to make.
        max_shard_bytes: size at which the result is cut into several files, between tensors.
        threshold: for whoever loads it: features that reach it are multiplied in 16 bits; 0 is none.
        progress: show a bar on a terminal and one closing line anywhere, on stderr.

    Raises:
        FileError: the source is damaged, incomplete, quantized already or not finite; or an option is out of range.
            Nothing is left in `destination`.
    """
    settings = {
        "quant_method": METHOD,
        "load_in_8bit": True,
        "load_in_4bit": False,
        "llm_int8_threshold": _checked_threshold(threshold, "threshold"),
        "llm_int8_skip_modules": ["lm_head"],
        "llm_int8_has_fp16_weight": False,
        "llm_int8_enable_fp32_cpu_offload": False,
    }
    checkpoint = open_checkpoint(source)
    model = skeleton(checkpoint.config)
    tensors: dict[str, StoredTensor] = {}
    for name, (key, stored) in zip(
        checkpoint.tensors, as_hf(checkpoint.tensors, checkpoint.config).items(), strict=True
    ):
        tensors |= _quantized(stored, key, checkpoint.folder) if is_block_linear(model, name) else {key: stored}
    dtype = checkpoint.tensors["tok_embeddings.weight"].dtype
    content = hf_config_dict(checkpoint.config, dtype) | {QUANTIZED: settings}
    write_hf_tensors(
        tensors, Path(destination), max_shard_bytes, lambda: content, kind="layout hf, int8", progress=progress
    )


def _quantized(stored: StoredTensor, key: str, source: Path) -> dict[str, StoredTensor]:
    """The three tensors that stand for a weight; read once if the codes come first, for the scales come with them."""
    scales: list[Tensor] = []

    def read_codes() -> Tensor:
        linear = nn.Linear(stored.shape[1], stored.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(stored.read(), requires_grad=False)
        try:
            layer = Int8Linear.from_linear(linear)
        except ValueError as error:
            raise UnsuitableFileError(f"{key}: {error}", file=source, remedy="name another checkpoint") from error
        scales[:] = [layer.weight_absmax]
        return layer.weight_codes

    def read_scales() -> Tensor:
        if not scales:
            read_codes()
        return scales[0]

    scale_key, format_key = _companions(key)
    return {
        key: StoredTensor(stored.shape, torch.int8, read_codes),
        scale_key: StoredTensor(stored.shape[:1], torch.float32, read_scales),
        format_key: StoredTensor.of(torch.tensor(ROW_BY_ROW, dtype=torch.uint8)),
    }


def _companions(key: str) -> tuple[str, str]:
    """Names of the scales and of the format that belong to the codes of that name."""
    module = key.removesuffix("weight")
    return f"{module}SCB", f"{module}weight_format"


def is_int8_checkpoint(path: str | Path) -> bool:
    """Whether the config.json in a directory tells of weights as `write_int8_checkpoint` stores them.

    Raises:
        DamagedFileError: the file is.
    """
    file = Path(path) / "config.json"
    return file.is_file() and _is_int8(read_json_object(file).get(QUANTIZED))


def _is_int8(settings: object) -> bool:
    if not isinstance(settings, dict) or settings.get("quant_method", METHOD) != METHOD:
        return False
    return settings.get("load_in_8bit") is True and not settings.get("llm_int8_has_fp16_weight")


@torch.no_grad()
def load_int8_checkpoint(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    threshold: float | None = None,
    progress: bool = True,
) -> Llama:
    """Load a LLaMA whose blocks' Linear layers are stored in int8. See the module for what stays in the files.

    Args:
        path: the directory.
        dtype: of what is not in int8; None keeps it as stored.
        device: where the weights go; to any but the CPU they are copied.
        threshold: of the layers; None is the stored one.
        progress: show a bar on a terminal and one closing line anywhere, on stderr.

    Returns:
        The model in evaluation mode.

    Raises:
        FileError: the directory holds no such checkpoint, or a damaged, incomplete or ill-fitting one.
    """
    check_float_dtype(dtype)
    folder = Path(path)
    config, stored_threshold = _read_settings(folder)
    limit = stored_threshold if threshold is None else _checked_threshold(threshold, "threshold")
    tensors = _mapped_tensors(folder, config)
    model = skeleton(config)
    with transfer_progress(
        f"mapping {folder.name}",
        f"mapped {folder} (layout hf, int8; pages are read when first used)",
        sum(tensor.nbytes for tensor in tensors.values()),
        enabled=progress,
    ) as moved:
        for name in parameter_shapes(config):
            key = hf_name(name)
            if key not in tensors:  # a tied head
                continue
            rows = hf_rows(name, config)
            own_rows = None if rows is None else rows.argsort()
            if is_block_linear(model, name):
                layer = _int8_linear(tensors[key], tensors[_companions(key)[0]], own_rows, limit)
                model.set_submodule(name.removesuffix(".weight"), layer.to(device))
            else:
                place(model, name, tensors[key].to(device, dtype))
            moved(tensors[key].nbytes)
    model.tie_weights()
    return model.eval()


def _int8_linear(codes: Tensor, absmax: Tensor, rows: Tensor | None, threshold: float) -> Int8Linear:
    """A layer over codes (N, K) and absmax (N,), without copying the codes unless their rows are to be reordered."""
    layer = Int8Linear(codes.shape[1], codes.shape[0], threshold=threshold, device="meta")
    layer.weight_codes = codes if rows is None else codes.index_select(0, rows)
    layer.weight_absmax = absmax.clone() if rows is None else absmax.index_select(0, rows)
    return layer


def _read_settings(folder: Path) -> tuple[LlamaConfig, float]:
    """Shape and threshold."""
    file = folder / "config.json"
    if not file.is_file():
        raise UnsuitableFileError(
            "it holds no config.json", file=folder, remedy="give the directory of an int8 checkpoint"
        )
    raw = read_json_object(file)
    config = config_from_hf(raw, str(file), mark=QUANTIZED)
    settings = raw.get(QUANTIZED)
    if not isinstance(settings, dict) or not _is_int8(settings):
        raise UnsuitableFileError(
            f"{QUANTIZED} = {shown(settings)} is not the int8 of {METHOD} (load_in_8bit)",
            file=file,
            remedy="write such a checkpoint from the 16-bit one with convert.py int8",
        )
    try:
        return config, _checked_threshold(settings.get("llm_int8_threshold", THRESHOLD), "llm_int8_threshold")
    except ValueError as error:
        raise UnsuitableFileError(str(error), file=file) from error


def _checked_threshold(value: object, what: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= sys.float_info.max:
        raise ValueError(
            f"{what} = {shown(value)} must be 0 (no decomposition) or positive: the paper's is {THRESHOLD}"
        )
    return float(value)


def _mapped_tensors(folder: Path, config: LlamaConfig) -> dict[str, Tensor]:
    """All tensors by stored name as views of the mapped files, once headers and scales were found right."""
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights:
        raise UnsuitableFileError(
            "it holds no model*.safetensors", file=folder, remedy="download it, or write it with convert.py int8"
        )
    stored = hf_tensors(folder, weights)
    check_depth(folder / "config.json", config, stored)
    _check_headers(folder, config, stored)
    index = folder / "model.safetensors.index.json"
    files = {folder / name for name in read_weight_map(index).values()} if index.is_file() else set(weights)
    tensors: dict[str, Tensor] = {}
    for file in sorted(files):
        # One opening for all of a file's tensors: each opening is a map of the whole file.
        with safe_open(file, framework="pt") as opened:
            tensors |= {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
    for key, tensor in tensors.items():
        if key.endswith(".SCB") and not (tensor.isfinite() & (tensor >= 0)).all():
            raise DamagedFileError(
                f"{key} holds NaN, infinite or negative scales", file=folder, remedy="download or write it again"
            )
        if key.endswith(".weight_format") and tensor.item() != ROW_BY_ROW:
            raise UnsuitableFileError(
                f"{key} = {tensor.item()} is an order of a GPU's, not row by row (0)",
                file=folder,
                remedy=f"save it with a newer {METHOD}, or write it from the 16-bit checkpoint with convert.py int8",
            )
    return tensors


def _check_headers(folder: Path, config: LlamaConfig, stored: Mapping[str, StoredTensor]) -> None:
    """Raise unless there are just the tensors that the config implies, of the right shapes and dtypes."""
    model = skeleton(config)
    others = dict(stored)
    shapes: dict[str, tuple[int, ...]] = {}
    problems: dict[str, str] = {}
    for name, shape in parameter_shapes(config).items():
        key = hf_name(name)
        if not is_block_linear(model, name):
            shapes[key] = shape
            continue
        scale_key, format_key = _companions(key)
        wanted: dict[str, tuple[Any, Any]] = {key: (shape, torch.int8), scale_key: (shape[:1], torch.float32)}
        if format_key in stored:  # absent from older files
            wanted[format_key] = ((), torch.uint8)
        for part, expected in wanted.items():
            found = others.pop(part, None)
            if found is None:
                problems[part] = f"missing: {part} {expected[0]}"
            elif (found.shape, found.dtype) != expected:
                problems[part] = f"misshapen: {part} is {found.shape} {found.dtype}, int8 needs {expected}"
    check_hf_fit(folder, config, shapes, others, problems)
