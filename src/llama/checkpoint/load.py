"""Build a model from a checkpoint, tensor by tensor.

The model starts on the "meta" device, where parameters have no memory. Each tensor is then read, put into this
project's layout, cast, moved, and set in its place. A converter (to int8, say) gets each block Linear as it lies in the
file's pages: on a CPU its weight need not exist in 16 bits at all. So the peak is the finished model plus one tensor.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from files import UnsuitableFileError
from llama.checkpoint.names import skeleton
from llama.checkpoint.progress import transfer_progress
from llama.checkpoint.read import open_checkpoint
from llama.model import Llama
from native import advise_huge_pages

ConvertLinear = Callable[[nn.Linear], nn.Module]


@torch.no_grad()
def load_checkpoint(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    convert_linear: ConvertLinear | None = None,
    progress: bool = True,
) -> Llama:
    """Load a LLaMA from a directory in any of the formats of `llama.checkpoint.read`.

    Args:
        path: the directory.
        dtype: of the weights in memory; None keeps each as it is stored.
        device: where the weights go.
        convert_linear: replaces each of a block's seven Linear layers as it arrives, on `device` and in its stored
            dtype; not the head. The weight it is given may be a view of the file: what it keeps must be a copy.
        progress: show a bar on a terminal and one closing line anywhere, on stderr.

    Returns:
        The model in evaluation mode. Its memory is its own: the files may be deleted.

    Raises:
        FileError: the checkpoint is damaged, incomplete or not a LLaMA; see `open_checkpoint`. Nothing was allocated.
    """
    check_float_dtype(dtype)
    checkpoint = open_checkpoint(path)
    model = skeleton(checkpoint.config)
    total = sum(stored.nbytes for stored in checkpoint.tensors.values())
    name = checkpoint.folder.resolve().name
    with transfer_progress(
        f"loading {name}", f"loaded {checkpoint.folder} ({checkpoint.description})", total, enabled=progress
    ) as moved:
        for parameter_name, stored in checkpoint.tensors.items():
            # A converter gets the weight as stored: rounded to `dtype` first, an fp16 weight would lose bits to bf16.
            converted = convert_linear is not None and is_block_linear(model, parameter_name)
            weight = stored.read()
            weight = weight.to(device) if converted else _copy(weight, device, dtype or stored.dtype)
            place(model, parameter_name, weight, convert_linear)
            del weight  # the next tensor is about to be read
            moved(stored.nbytes)
    model.tie_weights()
    return model.eval()  # converted modules are new, and new modules are in training mode


@torch.no_grad()
def fill_parameters(
    model: Llama,
    path: str | Path,
    *,
    put: Callable[[Tensor, Tensor], object] = Tensor.copy_,
    progress: bool = True,
) -> None:
    """Give a model that has its memory already the weights of a directory, in place, a tensor at a time.

    Args:
        model: of the directory's shape.
        put: copies a weight, as stored and maybe a view of the file, into a parameter (given first). That may hold some
            of its values only: a model may be spread over several processes.
        path, progress: as for `load_checkpoint`.

    Raises:
        ValueError: as for `load_checkpoint`; or the model is of another shape. Nothing has changed then.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.config != model.config:
        raise UnsuitableFileError(
            f"it holds {checkpoint.config}, which does not fit the model: {model.config}", file=path
        )
    parameters = dict(model.named_parameters())
    total = sum(stored.nbytes for stored in checkpoint.tensors.values())
    name = checkpoint.folder.resolve().name
    with transfer_progress(
        f"loading {name}", f"loaded {checkpoint.folder} ({checkpoint.description})", total, enabled=progress
    ) as moved:
        for parameter_name, stored in checkpoint.tensors.items():
            put(parameters[parameter_name], stored.read())
            moved(stored.nbytes)


def _copy(weight: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """The same numbers in memory of the model's own: what was read may be a view of the file, which must not stay."""
    # The kernel hands out large pages faster than it clears small ones, and a model is read faster from them.
    return advise_huge_pages(torch.empty(weight.shape, dtype=dtype, device=device)).copy_(weight)


def place(model: Llama, name: str, weight: Tensor, convert_linear: ConvertLinear | None = None) -> None:
    """Make a tensor the parameter of that name, and convert its module if it is a block's Linear."""
    module_name, _, attribute = name.rpartition(".")
    module = model.get_submodule(module_name)
    setattr(module, attribute, nn.Parameter(weight.contiguous()))
    if convert_linear is not None and isinstance(module, nn.Linear) and is_block_linear(model, name):
        model.set_submodule(module_name, convert_linear(module))


def is_block_linear(model: Llama, name: str) -> bool:
    """Whether a parameter is the weight of one of a block's seven Linear layers."""
    module_name = name.rpartition(".")[0]
    return module_name.startswith("layers.") and isinstance(model.get_submodule(module_name), nn.Linear)


def check_float_dtype(dtype: torch.dtype | None) -> None:
    """Refuse a dtype that would round weights to whole numbers."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype = {dtype!r} must be a floating-point torch.dtype, such as torch.bfloat16, or None")
