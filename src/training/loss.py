"""The language-model objective: the sum of −log P_φ(y_t | x, y_<t) over the supervised tokens.

    max_φ Σ_{(x,y)} Σ_t log P_φ(y_t | x, y_<t)                     (LoRA, arXiv 2106.09685, eq. 1)

Sums, not means: the mean is taken once per optimizer step over all its supervised tokens, however they fall into
micro-batches. A mean of micro-batch means would weigh a token in a short answer above one in a long answer.

With a vocabulary of 32,000 a table of all logits may need more memory than everything below it. So only supervised
positions go through the head, a chunk of them at a time, and the logits z = W h of one chunk make room for the next
one's as soon as their gradient has been used, still in the forward pass. For the target y, with p = softmax(z):

    L = log Σ_v exp z_v − z_y
    ∂L/∂z = p − e_y         ∂L/∂h = Wᵀ (p − e_y)         ∂L/∂W = Σ (p − e_y) hᵀ

What is kept for the backward pass is ∂L/∂h, as large as h, and ∂L/∂W where the head is trained. The idea is that of
Liger Kernel's fused linear cross entropy (arXiv 2410.10989). Cut Cross-Entropy (arXiv 2411.09009) goes further and
keeps logits out of memory altogether, in a kernel that computes them a second time for the gradient.

Letters: B batch, T tokens, C model width, V vocabulary, N supervised positions.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

from data import IGNORE, Batch
from llama import Llama
from native.cross_entropy import cross_entropy_

CHUNK_LOGITS = 2**24
"""At once in memory: 524 positions of a vocabulary of 32,000, rows enough for a product at full speed."""


def causal_lm_loss_reference(logits: Tensor, targets: Tensor) -> Tensor:
    """The formula over a full table of logits. Shapes: (B, T, V), (B, T) -> scalar.

    >>> causal_lm_loss_reference(torch.zeros(1, 2, 4), torch.tensor([[3, IGNORE]]))  # one target among 4 equals: ln 4
    tensor(1.3863)
    """
    total = logits.new_zeros(())
    for row, row_targets in zip(logits, targets, strict=True):
        for scores, target in zip(row, row_targets, strict=True):
            if target != IGNORE:
                total = total - (scores[target] - torch.logsumexp(scores, dim=-1))
    return total


def causal_lm_loss(model: Llama, batch: Batch, *, scale: float = 1.0) -> Tensor:
    """scale times the summed loss of a batch.

    Args:
        scale: 1/(supervised tokens of the whole optimizer step) makes the step's mean. Given here, it is part of the
            gradient before that is rounded to the products' dtype; a factor applied to the result would round it again.

    Returns:
        float32 scalar; 0 (with a graph) when nothing is supervised.
    """
    hidden = model.hidden_states(batch.token_ids, positions=batch.positions, documents=batch.documents)  # (B, T, C)
    targets = batch.targets.flatten()
    # Indexing by the mask would make a GPU's host wait for the number of rows, which the batch knows.
    supervised = (targets == IGNORE).byte().argsort(stable=True)[: batch.n_supervised]
    hidden = hidden.flatten(0, 1).index_select(0, supervised)  # (N, C)
    n_chunks = max(1, math.ceil(batch.n_supervised * model.config.vocab_size / CHUNK_LOGITS))
    return head_loss(model.output, hidden, targets[supervised], scale=scale, n_chunks=n_chunks)


def head_loss(head: nn.Module, hidden: Tensor, targets: Tensor, *, scale: float = 1.0, n_chunks: int = 1) -> Tensor:
    """scale · Σ_n −log softmax(head(hidden_n))[targets_n], with the logits of one of `n_chunks` in memory at a time.

    Args:
        head: a module (N, C) -> (N, V) that treats every row alike: a linear layer, trained or not, in 8 bits, adapted.
        hidden: (N, C).
        targets: (N,) int64.

    Returns:
        float32 scalar. Its gradient is computed here; the backward pass, which can run once, multiplies it by a number.
    """
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    if torch.is_grad_enabled() and (hidden.requires_grad or trained):
        return _HeadLoss.apply(head, targets, scale, n_chunks, hidden, *trained)
    chunks = zip(hidden.tensor_split(n_chunks), targets.tensor_split(n_chunks), strict=True)
    return scale * torch.cat([row_losses_(head(rows), ids, None) for rows, ids in chunks]).sum()


class _HeadLoss(torch.autograd.Function):
    """`head_loss` with its gradient: ∂L/∂z from the formula, what lies below from the head's own backward pass."""

    @staticmethod
    def forward(
        ctx: Any, head: nn.Module, targets: Tensor, scale: float, n_chunks: int, hidden: Tensor, *trained: Tensor
    ) -> Tensor:
        losses, below = [], []
        totals: list[Tensor] = []
        for rows, ids in zip(hidden.tensor_split(n_chunks), targets.tensor_split(n_chunks), strict=True):
            chunk_losses, chunk_below, *weights = _chunk_gradients(head, rows, ids, scale, trained)
            losses.append(chunk_losses)
            below.append(chunk_below)
            if not totals:
                totals = weights
                continue
            for total, weight in zip(totals, weights, strict=True):
                total.add_(weight)  # in the weight's dtype, as the gradients of micro-batches add up
        ctx.save_for_backward(torch.cat(below), *totals)
        return scale * torch.cat(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        # In place: the head's own gradient may be the largest tensor of the step.
        return None, None, None, None, *(gradient.mul_(factor) for gradient in ctx.saved_tensors)


def _chunk_gradients(
    head: nn.Module, rows: Tensor, targets: Tensor, scale: float, trained: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Losses (n,) of rows (n, C); the gradients of scale times their sum: ∂L/∂h (n, C), one for each of `trained`."""
    with torch.enable_grad():
        rows = rows.detach().requires_grad_()
        logits = head(rows)  # (n, V)
    edge = get_gradient_edge(logits)  # taken before ∂L/∂z is written over the logits, which is not for autograd to see
    gradient = logits.detach()
    losses = row_losses_(gradient, targets, scale)
    return losses, *torch.autograd.grad([edge], [rows, *trained], [gradient], materialize_grads=True)


def row_losses_(logits: Tensor, targets: Tensor, scale: float | None) -> Tensor:
    """(N,) float32: log Σ exp z − z[target] of each row of logits (N, V), in float32 whatever the logits' dtype.

    Args:
        scale: the logits become scale · (softmax(z) − onehot(target)), rounded once; None: they may be overwritten.

    >>> z = torch.zeros(1, 4)
    >>> row_losses_(z, torch.tensor([3]), scale=2.0), z  # ln 4, and 2·(¼, ¼, ¼, ¼ − 1)
    (tensor([1.3863]), tensor([[ 0.5000,  0.5000,  0.5000, -1.5000]]))
    """
    losses = cross_entropy_(logits, targets, scale)
    if losses is not None:
        return losses
    targets = targets.unsqueeze(1)  # (N, 1)
    table = logits.float()  # where that is no copy, the logits themselves
    table -= table.amax(-1, keepdim=True)  # of the difference, so that the logarithm and z[target] are both small
    at_target = table.gather(1, targets)
    total = table.exp_().sum(-1, keepdim=True)
    if scale is not None:
        table.mul_(scale / total).scatter_add_(1, targets, torch.full_like(at_target, -scale))
        logits.copy_(table)
    return (total.log() - at_target).squeeze(1)
