"""The language-model objective: the sum of −log P_φ(y_t | x, y_<t) over the supervised tokens.

    max_φ Σ_{(x,y)} Σ_t log P_φ(y_t | x, y_<t)                     (LoRA, arXiv 2106.09685, eq. 1)

Sums, not means: the mean is taken once per optimizer step over all its supervised tokens, however they fall into
micro-batches. A mean of micro-batch means would weigh a token in a short answer above one in a long answer.

Letters: B batch, T tokens, C model width, V vocabulary, N supervised positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from data import IGNORE, Batch
from llama import Llama


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


def causal_lm_loss(model: Llama, batch: Batch) -> Tensor:
    """Summed loss of a batch; divide by the number of supervised tokens of the whole optimizer step.

    Only supervised positions go through the head: with a vocabulary of 32,000 the logits of a masked prompt would cost
    more memory than everything below them.

    Returns:
        float32 scalar; 0 (with a graph) when nothing is supervised.
    """
    hidden = model.hidden_states(batch.token_ids, positions=batch.positions, documents=batch.documents)  # (B, T, C)
    supervised = batch.targets != IGNORE
    logits = model.logits(hidden[supervised])  # (N, V)
    return F.cross_entropy(logits, batch.targets[supervised], reduction="sum")
