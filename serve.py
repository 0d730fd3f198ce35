"""Ask a LLaMA in the browser: a local page with streamed answers, and what the model would have said instead.

    python serve.py                                                            the bundled miniature
    python serve.py --adapter runs/demo/adapter --int8                         base and adapter, side by side
    python serve.py --base DIR --adapter runs/medalpaca-7b-lora-8bit/adapter --int8   real weights

The page's address goes to standard output, everything else to standard error. Ctrl-C ends the server.
Needs the extra: pip install -e '.[serve]'.
"""

from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.console import Console

from recipe import ModelOptions, plain_errors
from recipe.conversation import STOP

NOTES = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Options:
    """Ask a LLaMA in the browser."""

    model: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    host: str = "127.0.0.1"
    """Address to listen at. Anything but this machine's loopback lets others in: there is no password."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    stop: tuple[str, ...] = STOP
    """Texts that end an answer, as EOS does. A model not tuned to stop goes on to invent the next question."""


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, load the model, serve the page until Ctrl-C."""
    options = tyro.cli(Options, args=arguments, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    with plain_errors(out_of_memory="add --int8"):
        run(options)


def run(options: Options) -> None:
    """Take the port, load the model, serve."""
    try:
        from serving.server import is_loopback, listen, make_server, page_url
    except ModuleNotFoundError as error:
        raise ValueError(f"the page needs the extra serve ({error}): pip install -e '.[serve]'") from error
    with listen(options.host, options.port) as listener:  # a taken port shows before the long load
        if not is_loopback(listener):
            NOTES.print(f"warning: whoever reaches {page_url(listener)} can use this model; there is no password")
        inference = options.model.load()
        NOTES.print(inference.description, style="dim")
        server = make_server(inference, listener, options.stop)
        print(page_url(listener), flush=True)
        server.run(sockets=[listener])


if __name__ == "__main__":
    main()
