"""The command `bge-m3-qdrant`, also `python -m service`: finds the subcommand, runs it, and reports what failed.

A subcommand is imported when it is named, and what it needs when it runs, so that `--help` and the health check start
in a tenth of a second. A failure is one line on the standard error and exit status 2, unless the subcommand
documents another status.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, NoReturn

import click
from click.exceptions import Abort, Exit, NoArgsIsHelpError

from service import __version__
from service.shutdown import INTERRUPTED_STATUS, end_process
from service.transports.cli.options import CONTEXT, Failure, examples

PROGRAM: Final = "bge-m3-qdrant"

COMMANDS: Final = {
    "serve": "Serve the operations over HTTP.",
    "queue": "Serve a RunPod queue, as `python handler.py` does.",
    "mcp": "Serve searches to language models, as tools of MCP.",
    "ask": "Ask a collection, and show its hits.",
    "bulk": "Load files into a collection.",
    "plan": "Plan sizes, servers, GPU hours and costs of a collection.",
    "embed": "Embed files into vectors in Parquet files, which bulk loads.",
    "complete": "Add vectors of further kinds to the points of a collection.",
    "reindex": "Copy a collection into a new schema, or embed it anew.",
    "demo": "Embed, store and search the bundled corpus.",
    "precision": "Compare a faster type with float32 on your model and texts.",
    "prefetch": "Download a model into the cache, ready to load offline.",
    "settings": "Show the settings of the environment.",
    "healthcheck": "Check whether the HTTP server on PORT is ready.",
    "version": "Show the versions of the program and its main libraries.",
}
"""Subcommands with their summaries, in the order of `--help`; each is `command` in the module of its name."""

_EXAMPLES: Final = (
    "MODEL_ID=mini bge-m3-qdrant demo",
    'MODEL_ID=mini QDRANT_PATH=build/demo bge-m3-qdrant ask "how do I copy only the changed parts" --collection demo',
    "MODEL_ID=mini PORT=8000 bge-m3-qdrant serve",
)


class Commands(click.Group):
    """The subcommands, imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names of all subcommands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """The subcommand of this name, imported; None if the name is unknown."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"service.transports.cli.commands.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the summaries, without importing a subcommand."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; returns its exit status, also after a failure that is then on the standard error."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            return _fail(error, ctx)
        except (Exit, Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            end_process(INTERRUPTED_STATUS)
        except Exception as error:  # noqa: BLE001 - no traceback: it may quote a user's text
            return _fail(Failure(_explained(error)), ctx)

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run the command line that click is given, and end with the exit status."""
        try:
            status = super().main(*args, **{"prog_name": PROGRAM, **extra, "standalone_mode": False})
        except NoArgsIsHelpError as error:
            error.show()
            status = error.exit_code
        except click.ClickException as error:
            status = _fail(error)
        except Abort:
            end_process(INTERRUPTED_STATUS)
        sys.exit(status)


def _fail(error: click.ClickException, context: click.Context | None = None) -> int:
    """Print the error on one line: the command, what is wrong and, after a mistake in the arguments, where to look.

    Returns:
        The exit status.
    """
    message = " ".join(error.format_message().split())
    names = [PROGRAM] if context is None else [context.command_path, context.invoked_subcommand]
    command = " ".join(name for name in names if name)
    if isinstance(error, click.UsageError):
        command = command if error.ctx is None else error.ctx.command_path
        message = f"{message if message.endswith(('.', '?')) else f'{message}.'} See `{command} --help`"
    click.echo(f"{command}: {message}", err=True)
    return error.exit_code


def _explained(error: Exception) -> str:
    """What failed; of a defect only its type and place, since its message may quote a text."""
    from embedder import ConfigurationError, WorkerError, whereabouts

    if isinstance(error, ConfigurationError | WorkerError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and find_spec(package := str(error.name).partition(".")[0]) is None:
        return f"{package} is not installed; install {PROGRAM} with its dependencies"
    return f"internal error: {whereabouts(error)}; please report it"


@click.group(
    PROGRAM,
    cls=Commands,
    context_settings=CONTEXT,
    epilog=examples(*_EXAMPLES, more=f"See `{PROGRAM} COMMAND --help` for the options of a command."),
)
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """BGE-M3 for Qdrant: dense, sparse and ColBERT vectors, ingest and hybrid search.

    Commands read the model, the store and the schema from environment variables such as MODEL_ID and QDRANT_URL;
    `bge-m3-qdrant settings` lists them. LOG_LEVEL and LOG_FORMAT apply to every command that logs; log lines go to the
    standard error.
    """


def main() -> NoReturn:
    """Run the command line of this process."""
    cli.main()
