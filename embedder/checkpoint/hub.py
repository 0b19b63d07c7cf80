"""The Hugging Face hub client: whether the hub answers, found out within seconds, and where its log lines go.

The hub client itself repeats a request that cannot connect for 24 seconds, and waits for a silent network without a
limit. A person whose network is off should not have to wait for either.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from typing import Final

TIMEOUT_S: Final = 5.0
"""Time for the hub to answer, unless `HF_HUB_ETAG_TIMEOUT` (a variable of the hub client) gives another one."""

RETRY_DELAY_S: Final = 1.0
"""Pause before the second and last attempt: a network that is just coming up refuses the first."""


def hub_failure(http_error: type[Exception]) -> str | None:
    """Ask the hub for a sign of life, through the hub client's own HTTP session, proxies and endpoint.

    Args:
        http_error: base of the errors of the client's HTTP library.

    Returns:
        The kind of failure, such as `gaierror` or `TimeoutError`; None if the hub answers, whatever the answer is, or
        if `HF_HUB_OFFLINE` forbids to ask.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None
    is_default = constants.HF_HUB_ETAG_TIMEOUT == constants.DEFAULT_ETAG_TIMEOUT
    timeout_s = TIMEOUT_S if is_default else float(constants.HF_HUB_ETAG_TIMEOUT)
    answer: Future[str | None] = Future()
    # A thread of its own, because no timeout of an HTTP client covers a name server that does not answer.
    threading.Thread(target=_ask, args=(answer, timeout_s, http_error), name="hub", daemon=True).start()
    try:
        return answer.result(timeout_s)
    except TimeoutError:
        return TimeoutError.__name__


def log_with_the_application() -> None:
    """Hand the hub client's log lines to the application's handlers, in place of the client's own handler."""
    from huggingface_hub.utils import logging as hub_logging

    logger = logging.getLogger("huggingface_hub")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    hub_logging.enable_propagation()


def _ask(answer: Future[str | None], timeout_s: float, http_error: type[Exception]) -> None:
    failure = _attempt(timeout_s, http_error)
    if failure is not None:
        time.sleep(RETRY_DELAY_S)
        failure = _attempt(timeout_s, http_error)
    answer.set_result(failure)


def _attempt(timeout_s: float, http_error: type[Exception]) -> str | None:
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=timeout_s)
    except (http_error, OSError) as error:
        return type(_first_cause(error)).__name__
    except Exception:  # noqa: BLE001 - such as an address that cannot be parsed: the client itself reports it
        return None
    return None


def _first_cause(error: BaseException) -> BaseException:
    """The error underneath: it tells a name that is unknown from a refused connection and a bad certificate."""
    while error.__context__ is not None:
        error = error.__context__
    return error
