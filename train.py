"""Fine-tune a LLaMA: every weight, LoRA adapters, or LoRA adapters on an 8-bit base with an 8-bit optimizer.

    python train.py --config configs/miniature-lora-8bit.toml                  the bundled miniature, in minutes
    python train.py --config configs/medalpaca-7b-lora-8bit.toml --base DIR    real weights
    python train.py --config configs/medalpaca-7b.toml --dry-run               parameters, memory, steps; no weights
    python train.py --config ... --preview                                     what the model will really see
    python train.py --config ... --preflight                                   try everything once, train nothing
    python train.py --config ... --resume auto                                 go on after a stop, bit for bit
    torchrun --nproc-per-node 8 train.py --config configs/medalpaca-13b.toml   the same run on eight GPUs

A config file overrides the defaults, a flag overrides the file. The run's directory (--output) receives the adapter or
checkpoint, metrics.jsonl, the resolved config.toml, loss.png, and report.html, a page about the run. SIGTERM or Ctrl-C
ends the step, saves, and exits.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from data import Batch, Example
from data.plan import MicroBatch
from llama import Tokenizer
from recipe import (
    FREE_TO_CHANGE,
    RunConfig,
    RunData,
    RunPlan,
    build_optimizer,
    check_training_fits,
    config_text,
    digest,
    dry_run,
    free_memory,
    is_out_of_memory,
    load_run_data,
    load_tokenizer,
    memory_remedies,
    model_digest,
    model_shape,
    pick_device,
    plain_errors,
    plan_steps,
    preview,
    read_config,
    write_config,
)
from training import (
    Engine,
    LostProcessError,
    MetricsLog,
    NonFiniteError,
    RunPosition,
    StepResult,
    StopRequest,
    Team,
    abandon_later,
    agree_on_run,
    alone_in,
    answer_aloud,
    autocast_of,
    blank,
    build_engine,
    check_same_run,
    check_team,
    check_weights,
    dropout_seed,
    find_checkpoint,
    joined_team,
    learning_rates,
    load_state,
    optimizer_step,
    own_share,
    peak_memory_gb,
    preflight,
    print_end,
    print_start,
    read_metrics,
    save_run,
    save_state,
    stop_requests,
    to_batch,
    training_progress,
    validation_batches,
    validation_loss,
)
from training.facts import AnswersLog, keep_facts
from training.report import try_run_page


@dataclass(frozen=True)
class Arguments:
    """Fine-tune a LLaMA: full, with LoRA, or with LoRA on an 8-bit base."""

    config: Path | None = None
    """TOML file of settings; the published recipes are in configs/."""
    dry_run: bool = False
    """Print parameters, predicted memory, steps and one example, then stop."""
    preview: bool = False
    """Print what the model will see (prompts with the supervised tokens coloured, lengths, cuts), then stop."""
    processes: int = 1
    """With --dry-run: predict the memory on each of so many devices that train together."""
    preflight: bool = False
    """Load everything and try it (tokenizer, template, one step, one save), train nothing, and stop."""
    resume: str = ""
    """Checkpoint to go on from: auto takes the newest whole one, or begins where there is none."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line; describe the run, try it, or do it."""
    with plain_errors(LostProcessError):
        options = parse_arguments(arguments)
        if options.processes < 1 or (options.processes > 1 and not options.dry_run):
            raise ValueError("--processes N belongs to --dry-run; torchrun --nproc-per-node N train.py ... starts N")
        if options.dry_run:
            dry_run(options.run, processes=options.processes)
        elif options.preview:
            preview(options.run)
        else:
            train(options.run, resume=options.resume, only_preflight=options.preflight)


def train(config: RunConfig, *, resume: str = "", only_preflight: bool = False) -> None:
    """Join the team (of one, where torchrun did not start more); load, try, train, save."""
    device = pick_device(config.train.device)
    with joined_team(device) as team, alone_in(config.output, team):
        try:
            run = load(config, team, device, resume)
            preflight(
                config, run.data, run.plan, run.tokenizer, run.engine, run.batch_of, run.autocast,
                say=run.say, verbose=only_preflight,
            )  # fmt: skip
            if only_preflight:
                return
            done = position(run)
            page, hurried = None, False
            with stop_requests() as stop:
                try:
                    take_steps(run, done, stop)
                    check_weights(run.engine, len(run.plan.steps))
                    stop.saving = True  # what the run was for: it is saved whole, whoever asks for a stop now
                    result = save_run(run.engine, config, run.data.template)
                except Exception:  # of a team: to be said at once, for torchrun is about to end this process too
                    hurried = team.size > 1
                    raise
                finally:  # of a run that was stopped or failed, too: why it did may be seen there
                    stop.saving = True  # a second signal waits for the page, and does not change the exit code
                    if team.leads and not hurried:
                        page = try_run_page(config.output, date=time.strftime("%Y-%m-%d %H:%M"))
            if team.leads:
                print_end(config, result)
                if page:
                    print(f"page     {page}")
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, LostProcessError) or not is_out_of_memory(error):
                raise
            raise MemoryError(out_of_memory(config, team, device)) from error


@dataclass(frozen=True)
class Run:
    """All that the loop needs, loaded and checked."""

    config: RunConfig
    device: torch.device
    engine: Engine
    optimizer: torch.optim.Optimizer
    tokenizer: Tokenizer
    data: RunData
    plan: RunPlan
    rates: list[float]
    fingerprint: dict[str, str]
    checkpoint: Path | None
    say: Callable[[str], None]

    @property
    def team(self) -> Team:
        """The processes that train together."""
        return self.engine.team

    def batch_of(self, rows: Sequence[Sequence[Example]]) -> Batch:
        """Rows of examples, as `[data]` says."""
        return to_batch(rows, self.config, self.tokenizer)

    def batch(self, rows: MicroBatch) -> Batch:
        """Rows of the training set, given by the examples' numbers."""
        return self.batch_of([[self.data.train[i] for i in row] for row in rows])

    def autocast(self) -> AbstractContextManager:
        """What forward passes run in."""
        return autocast_of(self.config, self.device)


def load(config: RunConfig, team: Team, device: torch.device, resume: str) -> Run:
    """Config → data → plan → checkpoint → model. What can be wrong is found before the long load."""
    say = print if team.leads else _silent
    torch.manual_seed(config.train.seed)
    tokenizer = load_tokenizer(config.model.tokenizer, config.model.base)
    data = load_run_data(config, tokenizer, progress=team.leads)
    plan = plan_steps(config, list(map(len, data.train)))
    rates = learning_rates(config, len(plan.steps))
    check_team(config, team)
    agree_on_run(team, config, tokenizer, data, plan)
    contents = {"tokenizer": tokenizer.digest(), "data": digest(data), "plan": plan.digest()}
    fingerprint = config.fingerprint() | contents
    checkpoint = find_checkpoint(checkpoint_folder(config), resume, team=team, say=say)
    if checkpoint is not None:
        check_same_run(checkpoint, fingerprint, may_change=FREE_TO_CHANGE, team=team)
    if not config.train.ignore_memory:
        shape = model_shape(config, tokenizer.vocab_size)
        check_training_fits(config, shape, free_memory(device, shared_by=team.on_this_machine), processes=team.size)
    engine = build_engine(config, tokenizer, device, team)
    fingerprint["base"] = model_digest(engine.model)
    team.agree({"the base's weights": fingerprint["base"]}, "all processes need the same files")
    optimizer = build_optimizer(engine.model, config.optim)
    return Run(config, device, engine, optimizer, tokenizer, data, plan, rates, fingerprint, checkpoint, say)


def position(run: Run) -> RunPosition:
    """Where the run stands: at its beginning, or where its checkpoint was written."""
    config, team, done = run.config, run.team, RunPosition(0, 0, run.fingerprint)
    if run.checkpoint is not None:
        state = (run.checkpoint, run.engine.model, run.optimizer, run.fingerprint)
        done = load_state(*state, team=team, may_change=FREE_TO_CHANGE)
        abandon_later(checkpoint_folder(config), run.checkpoint, team=team, say=run.say)
    if team.leads:
        write_config(config, config.output / "config.toml")
        keep_facts(config, run.data, run.engine, steps=len(run.plan.steps), device=run.device)
        print_start(config, run.data, run.engine, len(run.plan.steps), run.device)
    return done


def take_steps(run: Run, done: RunPosition, stop: StopRequest) -> None:
    """The loop: step, measure, validate, save, from where the run stands to its end or to a signal."""
    config, plan, team = run.config, run.plan, run.team
    log = MetricsLog(config.output, after_step=done.step, tensorboard=config.train.tensorboard) if team.leads else None
    record = _silent if log is None else log.write
    answers = AnswersLog(config.output, after_step=done.step) if team.leads else None
    validation = validation_batches(run.data.validation, config, run.tokenizer, team)
    tokens = done.tokens
    with training_progress(len(plan.steps), done=done.step, quiet=not team.leads) as progress:

        def validate(step: int) -> None:
            if validation:
                with progress.validating(len(validation)) as advance:
                    loss = validation_loss(run.engine, validation, autocast=run.autocast, after_batch=advance)
                record(step, validation_loss=loss)
                progress.say(f"step {step}: validation loss {loss:.4f}, perplexity {math.exp(min(loss, 50)):.2f}")
            if answers is not None and not run.engine.sharded:  # a sharded model answers only if all ranks ask together
                say = answers.listening(step, progress.say)
                answer_aloud(config, run.data, run.engine.model, run.tokenizer, say)

        def save(step: int) -> Path:
            check_weights(run.engine, step)
            stop.saving = True
            if log is not None:
                log.force()  # or a checkpoint would go on behind a gap in the curve, after a power cut
            position = RunPosition(step, tokens, done.fingerprint)
            options = {"keep": config.train.keep_checkpoints, "config_text": config_text(config), "team": team}
            path = save_state(checkpoint_folder(config), run.engine.model, run.optimizer, position, **options)
            stop.saving = False
            return path

        def leave_if_asked(step: int, saved: Path | None = None) -> None:
            [number] = team.largest(stop.signal)
            if number and step < len(plan.steps):
                path = saved or save(step)
                run.say(f"stopped after step {step} of {len(plan.steps)}, saved {path}; go on with --resume auto")
                sys.exit(128 + int(number))

        if team.leaders(owes_validation(run, done.step)):
            validate(done.step)
        for step in range(done.step + 1, len(plan.steps) + 1):
            started = time.perf_counter()
            result = one_step(run, step)
            tokens += result.n_tokens
            figures = {
                "loss": result.loss,
                "lr": run.rates[step - 1],
                "tokens_per_second": round(result.n_tokens / (time.perf_counter() - started), 1),
                "memory_gb": round(peak_memory_gb(run.device), 3),
            }
            progress.update(step, **figures)
            if step % config.train.log_every == 0 or step == len(plan.steps):
                record(step, **figures, gradient_norm=result.gradient_norm, tokens=tokens)
            leave_if_asked(step)
            if step in plan.evaluations:
                validate(step)
                leave_if_asked(step)
            if config.train.save_every and step % config.train.save_every == 0:
                path = save(step)
                leave_if_asked(step, saved=path)


def owes_validation(run: Run, step: int) -> bool:
    """Whether a validation is due where the run stands: before its first step, or after the step it was stopped in."""
    lines = read_metrics(run.config.output / "metrics.jsonl") if step in run.plan.evaluations else []
    return step == 0 or (bool(lines) and not any(line["step"] == step and "validation_loss" in line for line in lines))


def one_step(run: Run, step: int) -> StepResult:
    """Step number `step`, counted from 1, of the plan; what is not finite is named by step and rows."""
    for group in run.optimizer.param_groups:
        group["lr"] = run.rates[step - 1]
    micro_batches = run.plan.steps[step - 1]
    share = own_share(micro_batches, run.team)
    batches = [run.batch(rows) if number >= 0 else blank(run.batch(rows)) for number, rows in share]
    try:
        return optimizer_step(
            run.engine,
            run.optimizer,
            [batch.to(run.device) for batch in batches],
            clip=run.config.optim.clip,
            autocast=run.autocast,
            numbers=[number for number, _ in share],
            seeds=[dropout_seed(run.config.train.seed, step, number) for number, _ in share],
        )
    except NonFiniteError as error:
        rows = [] if error.micro_batch is None else [i for row in micro_batches[error.micro_batch] for i in row]
        which = f"; its examples are {', '.join(map(str, rows))} of the training set, from 0" if rows else ""
        raise NonFiniteError(f"step {step}: {error}{which}", error.micro_batch) from error


def out_of_memory(config: RunConfig, team: Team, device: torch.device) -> str:
    """What to change, with what each change is predicted to need."""
    try:
        shape = model_shape(config, load_tokenizer(config.model.tokenizer, config.model.base).vocab_size)
        remedies = memory_remedies(config, shape, processes=team.size)
    except (ValueError, OSError):
        remedies = "lower --train.micro-batch-size or --data.max-length"
    return f"out of memory on {device}; {remedies}"


def checkpoint_folder(config: RunConfig) -> Path:
    """Where a run's resumable checkpoints lie."""
    return config.output / "checkpoints"


def _silent(*_: object, **__: object) -> None:
    """What the processes print and log that do not lead."""


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Flags over the config file over the defaults."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--config", type=Path)
    path = peek.parse_known_args(argv)[0].config
    default = Arguments(path, run=read_config(path) if path else RunConfig())
    return tyro.cli(Arguments, args=argv, default=default, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))


if __name__ == "__main__":
    main()
