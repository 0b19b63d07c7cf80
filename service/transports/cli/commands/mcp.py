"""`bge-m3-qdrant mcp`: the tools of a language model."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from service.shutdown import exit_on_signals
from service.transports.cli.options import CONTEXT, Failure, configure_logs, examples

if TYPE_CHECKING:
    from bge_m3_qdrant_client import Target

    from service.transports.mcp.streamable_http import HttpOptions

_EXTRA = "pip install ./clients/python '.[mcp]'"


def _address(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, int] | None:
    """The host and the port of `HOST:PORT`, `[HOST]:PORT` or `PORT`."""
    if value is None:
        return None
    host, _, port = value.rpartition(":")
    if not port.isdecimal() or int(port) > 65_535 or (":" in host and not (host[0] == "[" and host[-1] == "]")):
        raise click.BadParameter("must be HOST:PORT, such as 127.0.0.1:8765 or [::1]:8765, or a port alone")
    return host.strip("[]") or "127.0.0.1", int(port)


@click.command(
    "mcp",
    context_settings=CONTEXT,
    epilog=examples(
        "bge-m3-qdrant mcp --url http://127.0.0.1:8000 --collection notes",
        "MCP_API_KEY=choose-one bge-m3-qdrant mcp --http 0.0.0.0:8765 --allow-host search.example.org",
        "MODEL_ID=mini QDRANT_PATH=build/demo bge-m3-qdrant mcp --in-process --collection demo",
        more="docs/mcp.md has the configuration of Claude, Cursor and VS Code.",
    ),
)
@click.option(
    "--url", envvar="WORKER_URL", metavar="URL", help="The worker.  [env: WORKER_URL; default: http://127.0.0.1:8000]"
)
@click.option(
    "--key",
    envvar="WORKER_API_KEY",
    metavar="KEY",
    help="The worker's key, or RunPod's with --endpoint. In the environment no other user of this machine sees it.  "
    "[env: WORKER_API_KEY]",
)
@click.option("--endpoint", metavar="ID", help="An endpoint on RunPod, in place of --url.")
@click.option(
    "--in-process", is_flag=True, help="Load the model and open the store in this process, as the settings say."
)
@click.option(
    "--collection",
    "collections",
    multiple=True,
    metavar="NAME",
    help="Only this collection may be used, or these if repeated; a single one is the default of the tools.",
)
@click.option("--allow-store", is_flag=True, help="Offer a tool that stores texts, and replaces points.")
@click.option(
    "--max-characters",
    type=click.IntRange(1000, 1_000_000),
    default=20_000,
    show_default=True,
    metavar="N",
    help="Maximum length of a result; longer texts are cut.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.1, 3600),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Maximum time of a request to the worker.",
)
@click.option(
    "--http",
    "address",
    callback=_address,
    metavar="HOST:PORT",
    help="Serve streamable HTTP at /mcp there, in place of the standard streams.",
)
@click.option(
    "--api-key",
    envvar="MCP_API_KEY",
    metavar="KEY",
    help="Key that clients of --http must send, or several with commas; required unless HOST is of the loopback.  "
    "[env: MCP_API_KEY]",
)
@click.option(
    "--allow-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Name under which clients of --http may call, besides HOST and those of the loopback; may be repeated.",
)
@click.pass_context
def command(context: click.Context, /, **options: Any) -> int:
    """Serve searches of a worker to language models, as tools of the Model Context Protocol.

    The worker is asked over HTTP, so this process starts in a second and holds neither a model nor a store. It also
    starts while the worker is down; calls are errors then, which say so. With --in-process it loads the model first.

    Exit status: 0 when the client has closed the standard streams, or after a signal, 2 if the options or the settings
    are invalid.
    """
    for module in ("mcp", "bge_m3_qdrant_client"):
        if find_spec(module) is None:
            raise Failure(f"{module} is not installed; install the extra with: {_EXTRA}")
    from service.transports.mcp.run import McpOptions, serve_http, serve_stdio
    from service.variables import plain

    for name in ("url", "key", "api_key"):
        options[name] = plain(options[name] or "") or None
    serving = McpOptions(
        target=_target(context, options),
        **{name: options[name] for name in ("collections", "allow_store", "max_characters", "timeout_s")},
    )
    http = None if options["address"] is None else _http_options(options)
    exit_on_signals()
    configure_logs()
    if http is None:
        return serve_stdio(serving, context.obj)
    from service.transports.mcp.streamable_http import PATH, listening

    try:
        listener = listening(http)
    except OSError as error:
        raise Failure(f"--http must name a free port of this machine ({error.strerror}); choose another one") from None
    with listener:
        host, port = listener.getsockname()[:2]
        click.echo(f"serving http://{f'[{host}]' if ':' in host else host}:{port}{PATH}", err=True)
        return serve_http(serving, listener, http, context.obj)


def _target(context: click.Context, options: dict[str, Any]) -> Target | None:
    """The worker that the options name; None for this process."""
    given = [
        f"--{name.replace('_', '-')}"
        for name in ("url", "endpoint", "in_process")
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other")
    if options["in_process"]:
        return None
    from bge_m3_qdrant_client import HttpTarget, InvalidOption, RunPodTarget

    from service.transports.mcp.run import WORKER_URL

    try:
        if options["endpoint"] is None:
            return HttpTarget(options["url"] or WORKER_URL, api_key=options["key"])
        if options["key"] is None:
            raise click.UsageError("--endpoint needs the key of RunPod, in WORKER_API_KEY or --key")
        return RunPodTarget(options["endpoint"], api_key=options["key"])
    except InvalidOption as error:
        raise click.UsageError(error.message.replace("api_key", "--key")) from None


def _http_options(options: dict[str, Any]) -> HttpOptions:
    from service.api_keys import ApiKeys
    from service.transports.mcp.streamable_http import HttpOptions

    host, port = options["address"]
    try:
        keys = ApiKeys.parse(options["api_key"]) if options["api_key"] else None
    except ValueError as error:
        raise click.UsageError(f"--api-key {error}") from None
    http = HttpOptions(host, port, keys, options["allowed_hosts"])
    if keys is None and not http.is_loopback:
        raise click.UsageError(f"--http {host} is open to other machines: set MCP_API_KEY to the key of its clients")
    return http
