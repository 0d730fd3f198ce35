"""One step's work on several processes.

Every rank holds the same plan. Micro-batch i of a step belongs to rank i mod N; its gradient is a sum, and so is the
whole, whoever adds it up: N processes take the same step as one, up to the order in which float numbers are added.

    adapters (lora, lora-8bit)   the base on every rank, gradients summed after the last micro-batch
    full                         FSDP2 `fully_shard`: parameters, gradients and optimizer state cut by rows, a block's
                                 weights gathered when it runs (arXiv 2304.11277; stage 3 of ZeRO, arXiv 1910.02054)

A rank with fewer micro-batches than the others runs blank ones, which supervise nothing and so add zero: a collective
operation needs every rank as often.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace

import torch
import torch.distributed as dist
from torch import Tensor

from data import IGNORE, Batch
from data.plan import MicroBatch
from llama import Llama, Tokenizer
from recipe import RunConfig, RunData, RunPlan, build_model, digest
from recipe.assemble import empty_model, fill_model
from recipe.model_digest import sampled
from training.loss import causal_lm_loss
from training.team import ALONE, Team


class Engine:
    """A model and the way its loss and gradient are computed: here, by this process alone.

    Attributes:
        model: what is trained, under its own names.
        team: the processes that share the work.
    """

    sharded = False

    def __init__(self, model: Llama, team: Team = ALONE) -> None:
        self.model, self.team = model, team

    def loss(self, batch: Batch, scale: float = 1.0) -> Tensor:
        """`causal_lm_loss` of this rank's micro-batch."""
        return causal_lm_loss(self.model, batch, scale=scale)

    def gradient_sync(self, last: bool) -> AbstractContextManager:
        """Around forward and backward pass of each micro-batch; `last` is the step's last on this rank."""
        return nullcontext()


class Replicated(Engine):
    """The whole model on every rank; gradients of what is trained are summed after the last micro-batch.

    What is trained begins everywhere with rank 0's numbers. The base is not sent: every rank has read the same files,
    as the comparison of digests before the first step finds out.

    All gradients travel as one vector, so the order of every sum is the same in every step, of a resumed run as well.
    PyTorch's DistributedDataParallel (arXiv 2006.15704) would send a part while the backward pass computes the next,
    which for adapters saves milliseconds; but it cuts its parts anew after the first backward pass, and adds up
    unaveraged only by a hook in Python, which can meet the process group's end in a deadlock.
    """

    def __init__(self, model: Llama, team: Team) -> None:
        super().__init__(model, team)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        with torch.no_grad():
            start = torch.cat([p.flatten() for p in self._trained])
            dist.broadcast(start, src=0)
            for parameter, part in zip(self._trained, self._parts(start), strict=True):
                parameter.copy_(part)

    @contextmanager
    def gradient_sync(self, last: bool) -> Iterator[None]:
        yield
        if last:
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self._trained])
            dist.all_reduce(flat)
            for parameter, part in zip(self._trained, self._parts(flat), strict=True):
                parameter.grad = part

    def _parts(self, flat: Tensor) -> list[Tensor]:
        """A vector of everything, as views in the parameters' shapes."""
        pieces = flat.split([p.numel() for p in self._trained])
        return [piece.view_as(p) for piece, p in zip(pieces, self._trained, strict=True)]


def build_engine(config: RunConfig, tokenizer: Tokenizer, device: torch.device, team: Team = ALONE) -> Engine:
    """The run's model, its weights loaded, and the way its gradient is computed by this team."""
    if team.size == 1 or config.train.method != "full":
        with team.together():
            model = build_model(config, tokenizer, device, progress=team.leads)
        return Engine(model) if team.size == 1 else Replicated(model, team)
    with team.together():
        model = empty_model(config, tokenizer)
    from training.fsdp import Sharded  # a second of imports, which only shares need
    from training.sharded import put_rows

    gathered = torch.bfloat16 if config.train.precision == "bf16-mixed" else None
    engine = Sharded(model, team, device, gathered_dtype=gathered)
    engine.take_memory(device)
    seen = hashlib.sha256()

    def put(parameter: Tensor, whole: Tensor) -> None:
        seen.update(sampled(whole))
        put_rows(parameter, whole)

    with team.together():
        fill_model(model, config, put, progress=team.leads)
    # Each keeps its own rows only, so of different files the model would be a mixture.
    team.agree({"the base's weights": seen.hexdigest()}, "all processes need the same files")
    return engine


def check_team(config: RunConfig, team: Team) -> None:
    """Each process must get a micro-batch of every whole step."""
    if config.accumulation < team.size:
        raise ValueError(
            f"a step of {config.train.batch_size} rows is {config.accumulation} micro-batches of "
            f"{config.train.micro_batch_size}, too few for {team.size} processes: lower train.micro_batch_size, raise "
            "train.batch_size, or start fewer"
        )


def agree_on_run(team: Team, config: RunConfig, tokenizer: Tokenizer, data: RunData, plan: RunPlan) -> None:
    """Refuse, on all ranks, to begin a run that is another on some of them: they would wait for each other for ever.

    Where the base and the data lie may differ from machine to machine; what is in them may not. (The base's digest is
    known when it is loaded: `team.agree` again.)

    Raises:
        ValueError: names what differs, with both values.
    """
    if team.size == 1:
        return
    settings = {
        f"{section}.{name}": repr(value)
        for section, values in asdict(config).items()
        for name, value in values.items()
        if f"{section}.{name}" not in PLACES
    }
    contents = {
        "the tokenizer's content": tokenizer.digest(),
        "the training data": digest(data),
        "the validation data": digest(replace(data, train=data.validation)),
        "the order of the rows": plan.digest(),
    }
    team.agree(settings | contents, "all processes need the same command line and the same files")


PLACES = ("model.base", "model.tokenizer", "data.folder")
"""Settings that may differ between the processes of one run."""


def own_share(micro_batches: Sequence[MicroBatch], team: Team) -> list[tuple[int, MicroBatch]]:
    """This rank's micro-batches with their numbers in the step; (−1, …) is one to be blanked.

    >>> own_share([[[0]], [[1]], [[2]]], Team(rank=1, size=2))
    [(1, [[1]]), (-1, [[0]])]
    """
    numbered = list(enumerate(micro_batches))
    share = numbered[team.rank :: team.size]
    rounds = -(-len(micro_batches) // team.size)
    return share + [(-1, [micro_batches[0][0]])] * (rounds - len(share))


def blank(batch: Batch) -> Batch:
    """The same batch with nothing supervised: its loss and gradient are zero."""
    return replace(batch, targets=torch.full_like(batch.targets, IGNORE), n_supervised=0, n_tokens=0)
