"""What makes two runs the same run: settings, data, plan of steps, tokenizer, and the base that is not trained."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from files import UnsuitableFileError

SAMPLES = 4096
"""Elements of a tensor that its digest looks at."""

PLAIN_WORDS = {
    "base": "the base's weights",
    "tokenizer": "the tokenizer",
    "data": "the training tokens",
    "plan": "the order of the rows",
}
"""Digests in a fingerprint; everything else is a setting by its own name."""


@torch.no_grad()
def model_digest(model: nn.Module) -> str:
    """SHA-256 over frozen parameters and buffers: name, shape, dtype, and up to 4,096 evenly spaced elements of each.

    It recognises a base, wherever it lies and in whichever layout it was stored. It does not vouch for it: a change
    between the elements goes unseen. Where everything is trained, as in a full run, it is the digest of nothing.

    >>> model = nn.Linear(2, 2)
    >>> model_digest(model) == hashlib.sha256().hexdigest()
    True
    """
    frozen: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    kept = model.state_dict(keep_vars=True).keys()  # not what is computed anew at each start, such as rotary angles
    frozen |= {name: buffer for name, buffer in model.named_buffers() if name in kept}
    digest = hashlib.sha256()
    for name, tensor in sorted(frozen.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(sampled(tensor))
    return digest.hexdigest()


def sampled(tensor: Tensor) -> memoryview:
    """The bytes of up to SAMPLES evenly spaced elements of a tensor."""
    flat = tensor.detach().flatten()
    spacing = max(1, -(-flat.numel() // SAMPLES))
    return flat[::spacing].cpu().contiguous().view(torch.uint8).numpy().data


def check_fingerprint(
    checkpoint: Path, then: Mapping[str, str], now: Mapping[str, str], may_change: Collection[str] = ()
) -> None:
    """Refuse to go on with another run's checkpoint.

    Args:
        may_change: settings that a continuation is free to change, for the message.

    Raises:
        UnsuitableFileError: names every difference with both values.
    """
    different = [name for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]
    if not different:
        return
    differences = [
        f"{PLAIN_WORDS.get(name, name)}: {_value(name, then)} then, {_value(name, now)} now" for name in different
    ]
    remedy = "set them as they were, or begin a new run in another --output"
    if may_change:
        remedy += f"; what may differ: {', '.join(sorted(may_change))}"
    problem = f"it belongs to a run with other settings; {'; '.join(differences)}"
    raise UnsuitableFileError(problem, file=checkpoint, remedy=remedy)


def _value(name: str, fingerprint: Mapping[str, str]) -> str:
    """A setting in full, the beginning of a digest."""
    value = fingerprint.get(name, "(unset)")
    return value[:12] if name in PLAIN_WORDS else value
