"""A run described before it costs anything: parameters, predicted memory, steps, tokens, an example."""

from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from data import example_text, fill_ratio, histogram, print_preview
from llama import LlamaConfig, Tokenizer
from recipe.assemble import check_window, checkpoint_folder, load_tokenizer, model_shape
from recipe.config import RunConfig
from recipe.memory import MemoryPlan, ParameterCount, count_parameters, meta_model, predict_memory
from recipe.run_data import RunData, load_run_data, plan_steps


def dry_run(config: RunConfig, console: Console | None = None, *, processes: int = 1) -> MemoryPlan:
    """Print all of it and return the predicted memory. What is not at hand (tokenizer, data) is named and left out.

    Args:
        processes: how many would train together, each on a device of its own.

    Raises:
        ValueError: the base is not at hand either, and `shape.name` does not say what it would be.
    """
    console = console or Console(highlight=False)
    tokenizer: Tokenizer | None = None
    try:
        tokenizer = load_tokenizer(config.model.tokenizer, config.model.base)
    except ValueError as error:
        console.print(f"no tokenizer, so no data: {error}", style="yellow")
    if config.model.base and not checkpoint_folder(config.model.base).exists() and config.shape.name:
        console.print(f"no base at {config.model.base}: taking the published shape {config.shape.name}", style="yellow")
        shape = LlamaConfig.named(config.shape.name)
    else:
        shape = model_shape(config, tokenizer.vocab_size if tokenizer else None)
    check_window(config, shape)
    model = meta_model(config, shape)
    console.print(parameter_table(count_parameters(model), config))
    memory = predict_memory(model, config, processes=processes)
    console.print(memory_table(memory, config, processes))
    if tokenizer is not None:
        _describe_data(config, tokenizer, console)
    return memory


def preview(config: RunConfig, *, show: int = 3, console: Console | None = None) -> None:
    """Print the first examples as the model will see them, the lengths, and what was cut or dropped."""
    tokenizer = load_tokenizer(config.model.tokenizer, config.model.base)
    _show(config, load_run_data(config, tokenizer), tokenizer, show, console or Console(highlight=False))


def parameter_table(counts: dict[str, ParameterCount], config: RunConfig) -> Table:
    """Number of weights per package and fate."""
    table = Table("package", title=f"parameters, method {config.train.method}", title_justify="left")
    for heading in ("trainable", "frozen", "int8"):
        table.add_column(heading, justify="right")
    for package, count in counts.items():
        table.add_row(package, *(f"{n:,}" for n in (count.trainable, count.frozen, count.int8)))
    return table


def memory_table(memory: MemoryPlan, config: RunConfig, processes: int = 1) -> Table:
    """Predicted bytes per purpose, in GB (10⁹ bytes)."""
    rows = f"{config.train.micro_batch_size} x {config.data.max_length} tokens"
    checkpointing = ", checkpointing" if config.train.gradient_checkpointing else ""
    each = f", on each of {processes} devices" if processes > 1 else ""
    title = f"predicted memory at the peak{each}, {rows}, {config.train.precision}{checkpointing}"
    table = Table("purpose", title=title, title_justify="left")
    table.add_column("GB", justify="right")
    for purpose, n_bytes in asdict(memory).items():
        table.add_row(purpose.replace("_", " "), f"{n_bytes / 1e9:.3f}")
    table.add_row("total", f"{memory.total / 1e9:.3f}", style="bold")
    return table


def _describe_data(config: RunConfig, tokenizer: Tokenizer, console: Console) -> None:
    try:
        data = load_run_data(config, tokenizer)
    except (ValueError, OSError) as error:  # OSError: a file that is not there
        console.print(f"no data: {error}", style="yellow")
        return
    steps = plan_steps(config, list(map(len, data.train))).steps
    tokens = sum(len(data.train[i]) for step in steps for rows in step for row in rows for i in row)
    filled = fill_ratio([rows for step in steps for rows in step], list(map(len, data.train)))
    console.print(f"{len(steps):,} optimizer steps, {tokens:,} tokens, {1 - filled:.1%} of all positions are padding")
    _show(config, data, tokenizer, 1, console)


def _show(config: RunConfig, data: RunData, tokenizer: Tokenizer, show: int, console: Console) -> None:
    window = config.data.max_length
    if data.report is not None:
        print_preview(data.train, data.report, tokenizer, max_length=window, show=show, console=console)
        return
    for example in data.train[:show]:  # the text objective: whole documents, nothing cut or dropped
        console.print(example_text(example, tokenizer))
    console.print(histogram(list(map(len, data.train)), window))
