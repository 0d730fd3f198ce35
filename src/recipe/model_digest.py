"""By what a model is recognised, wherever it lies: a digest of its weights that is quick to compute."""

import hashlib

import torch
from torch import Tensor, nn

SAMPLES = 4096
"""Elements of a tensor that its digest looks at."""


@torch.no_grad()
def model_digest(model: nn.Module, *, trained: bool = False) -> str:
    """SHA-256 over frozen parameters and buffers: name, shape, dtype, and up to 4,096 evenly spaced elements of each.

    It recognises a base, wherever it lies and in whichever layout it was stored. It does not vouch for it: a change
    between the elements goes unseen. Where everything is trained, as in a full run, it is the digest of nothing.

    Args:
        trained: the parameters that are being trained count as well.

    >>> model = nn.Linear(2, 2)
    >>> model_digest(model) == hashlib.sha256().hexdigest() != model_digest(model, trained=True)
    True
    """
    kept: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if trained or not p.requires_grad}
    stored = model.state_dict(keep_vars=True).keys()  # not what is computed anew at each start, such as rotary angles
    kept |= {name: buffer for name, buffer in model.named_buffers() if name in stored}
    digest = hashlib.sha256()
    for name, tensor in sorted(kept.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(sampled(tensor))
    return digest.hexdigest()


def sampled(tensor: Tensor) -> memoryview:
    """The bytes of up to SAMPLES evenly spaced elements of a tensor."""
    flat = tensor.detach().flatten()
    spacing = max(1, -(-flat.numel() // SAMPLES))
    return flat[::spacing].cpu().contiguous().view(torch.uint8).numpy().data
