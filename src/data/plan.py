"""The epoch plan: which examples stand in which row of which micro-batch.

A plan is a pure function of the examples' lengths, the settings, the seed and the epoch. So a run that resumes builds
the same list again and goes on at its micro-batch; no sampler has a state to save.

    "shuffle"          a new random order each epoch
    "group_by_length"  micro-batches of similar lengths, so that little is padded
    pack_to=N          several examples share a row of up to N tokens, so that almost nothing is padded
"""

import random
from collections.abc import Sequence
from typing import Literal

Row = list[int]  # indices of the examples in one row; one index unless packed
MicroBatch = list[Row]
Order = Literal["shuffle", "group_by_length"]

# As in transformers' LengthGroupedSampler: sort within 50 micro-batches, not over the whole set.
GROUP_MICRO_BATCHES = 50
# Rows that packing keeps open: more fill better, and move examples further from their shuffled place.
OPEN_ROWS = 64


def epoch_plan(
    lengths: Sequence[int],
    *,
    micro_batch_size: int,
    seed: int,
    epoch: int,
    order: Order = "shuffle",
    pack_to: int | None = None,
) -> list[MicroBatch]:
    """The micro-batches of one epoch, each a list of rows, each a list of indices into `lengths`.

    >>> epoch_plan([5, 3, 4, 2, 6], micro_batch_size=2, seed=0, epoch=0)
    [[[0], [1]], [[4], [3]], [[2]]]
    >>> epoch_plan([5, 3, 4, 2, 6], micro_batch_size=2, seed=0, epoch=0, pack_to=8)
    [[[0, 1], [2]], [[4, 3]]]

    Args:
        lengths: tokens of each example.
        micro_batch_size: rows per micro-batch; the last may have fewer.
        pack_to: tokens per packed row; None gives every example its own row. The number of micro-batches then depends
            on the order, and so differs a little from epoch to epoch.

    Raises:
        ValueError: an impossible setting, or an example longer than `pack_to`.
    """
    if micro_batch_size < 1:
        raise ValueError(f"micro_batch_size={micro_batch_size}; a micro-batch needs at least one row")
    rng = random.Random(f"{seed}/{epoch}")  # a string seeds through SHA-512: (1, 23) and (12, 3) are unrelated
    if order == "group_by_length":
        if pack_to is not None:
            raise ValueError("packing leaves nothing to group by length; take order='shuffle' with pack_to")
        return _group_by_length(lengths, micro_batch_size, rng)
    if order != "shuffle":
        raise ValueError(f"order={order!r}; expected 'shuffle' or 'group_by_length'")
    indices = list(range(len(lengths)))
    rng.shuffle(indices)
    if pack_to is None:
        return _chunks([[index] for index in indices], micro_batch_size)
    rows = pack(indices, lengths, pack_to)
    rng.shuffle(rows)  # packing emits full rows first and its leftovers last
    return _chunks(rows, micro_batch_size)


def pack(indices: Sequence[int], lengths: Sequence[int], pack_to: int, *, open_rows: int = OPEN_ROWS) -> list[Row]:
    """Best fit with bounded look-back: each example joins the fullest open row that has room for it.

    At most `open_rows` rows are open; when another is needed the fullest is closed. Deterministic, each index once.

    >>> pack([0, 1, 2, 3], [5, 6, 3, 2], 8)
    [[0, 2], [1, 3]]
    """
    rows: list[Row] = []
    unfinished: list[tuple[int, Row]] = []  # (tokens, indices)
    for index in indices:
        length = lengths[index]
        if length > pack_to:
            raise ValueError(f"example {index} has {length} tokens, more than a row of pack_to={pack_to}; cut it first")
        fitting = [place for place, (used, _) in enumerate(unfinished) if used + length <= pack_to]
        if fitting:
            place = max(fitting, key=lambda place: unfinished[place][0])
            used, row = unfinished[place]
            row.append(index)
            unfinished[place] = (used + length, row)
            if used + length == pack_to:
                rows.append(unfinished.pop(place)[1])
            continue
        if len(unfinished) == open_rows:
            fullest = max(range(len(unfinished)), key=lambda place: unfinished[place][0])
            rows.append(unfinished.pop(fullest)[1])
        unfinished.append((length, [index]))
    return rows + [row for _, row in unfinished]


def fill_ratio(plan: Sequence[MicroBatch], lengths: Sequence[int], *, pad_to_multiple_of: int = 8) -> float:
    """Real tokens over all positions of the padded micro-batches: 1 means that nothing is padded.

    >>> fill_ratio([[[0], [1]]], [4, 8], pad_to_multiple_of=8)
    0.75
    """
    positions = real = 0
    for micro_batch in plan:
        row_lengths = [sum(lengths[index] for index in row) for row in micro_batch]
        width = -(-max(row_lengths) // pad_to_multiple_of) * pad_to_multiple_of
        positions += width * len(row_lengths)
        real += sum(row_lengths)
    if not positions:
        raise ValueError("an empty plan has no fill ratio; give it at least one example")
    return real / positions


def _group_by_length(lengths: Sequence[int], micro_batch_size: int, rng: random.Random) -> list[MicroBatch]:
    """Shuffle, sort within groups of 50 micro-batches, cut into micro-batches, shuffle those.

    transformers leaves the micro-batches of a group in descending order, which makes the loss curve a saw; shuffled, an
    optimizer step sees all lengths. As there, the longest example comes first: what runs out of memory does so at once.
    """
    indices = list(range(len(lengths)))
    rng.shuffle(indices)
    micro_batches: list[MicroBatch] = []
    for group in _chunks(indices, micro_batch_size * GROUP_MICRO_BATCHES):
        group.sort(key=lambda index: -lengths[index])
        micro_batches += _chunks([[index] for index in group], micro_batch_size)
    rng.shuffle(micro_batches)
    if micro_batches:
        longest = max(range(len(micro_batches)), key=lambda k: lengths[micro_batches[k][0][0]])
        micro_batches[0], micro_batches[longest] = micro_batches[longest], micro_batches[0]
    return micro_batches


def _chunks(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]
