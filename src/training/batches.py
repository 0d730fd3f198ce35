"""Examples → batches, as `[data]` says: of the training set by the plan, of the validation set by length."""

from collections.abc import Sequence

from data import Batch, Example, collate
from llama import Tokenizer
from recipe import RunConfig
from training.parallel import blank
from training.team import Team


def to_batch(rows: Sequence[Sequence[Example]], config: RunConfig, tokenizer: Tokenizer) -> Batch:
    """Rows of examples → batch, as `[data]` says."""
    return collate(rows, pad_id=tokenizer.pad_id, padding_side=config.data.padding)


def validation_batches(examples: Sequence[Example], config: RunConfig, tokenizer: Tokenizer, team: Team) -> list[Batch]:
    """This rank's validation batches, of rows of similar length so that little is padded; as many as every rank's."""
    size = 4 * config.train.micro_batch_size  # no activations are kept for a backward pass
    ordered = sorted(examples, key=len)
    groups = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    batches = [to_batch([[example] for example in rows], config, tokenizer) for rows in groups]
    share = batches[team.rank :: team.size]
    return share + [blank(batches[0])] * (-(-len(batches) // team.size) - len(share)) if batches else []
