"""Errors of the Hub's client in one sentence, and retries where they help.

In: a call of huggingface_hub (0.34 and later, on requests, httpx or httpx2). Out: its result, or a
:class:`~onevision.errors.DownloadError`.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable
from typing import TypeVar

from onevision.errors import DownloadError

_T = TypeVar("_T")

AGAIN_HINT = "run the same command again: what has arrived is kept and the download goes on from there"

_TRIES = 5
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0
#: Errors of a connection that was cut during a transfer, by name: each client library has its own.
_CUT = ("ChunkedEncodingError", "ReadError", "RemoteProtocolError", "StalledError")


class UnavailableError(DownloadError):
    """This repository cannot be had; another one with the same checkpoint may."""


class UnreachableError(DownloadError):
    """The Hub does not answer as it should; the cache may have the checkpoint."""


class StalledError(OSError):
    """The client returned without an error and without all files."""


def retried(call: Callable[[], _T], repo: str, revision: str | None) -> _T:
    """Call, and try again after a wait if the Hub limits the rate or a transfer was cut.

    Args:
        call: The call; the client resumes a file that is partly there.
        repo: Repository, for the message.
        revision: Its revision, for the message.

    Raises:
        DownloadError: It failed for good.
    """
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined] # of the client's library

    for attempt in range(1, _TRIES + 1):
        try:
            return call()
        except (OSError, HTTPError, json.JSONDecodeError) as error:
            cause = _root_cause(error)
            wait = _wait(cause, attempt)
            if wait is None or attempt == _TRIES:
                raise _explain(cause, repo, revision) from error
            time.sleep(wait)
        except RuntimeError as error:  # from hf_xet, the native transfer
            reason = str(error).partition("\n")[0]
            hint = f"{AGAIN_HINT}; HF_HUB_DISABLE_XET=1 uses the plain way"
            raise UnreachableError(f"the download of {repo} failed: {reason}", hint=hint) from error
    raise AssertionError  # the last attempt returns or raises


def _root_cause(error: Exception) -> Exception:
    """Unwrap "not found locally", which the client raises from the error of the network."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _status(error: Exception) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _wait(error: Exception, attempt: int) -> float | None:
    """Seconds until the next attempt; None if it would not help."""
    backoff: float = _FIRST_WAIT_S * 2 ** (attempt - 1)
    if type(error).__name__ in _CUT:
        return backoff
    if _status(error) != 429:
        return None
    asked: str = error.response.headers.get("Retry-After", "")  # type: ignore[attr-defined]
    wait = float(asked) if asked.isdigit() else backoff
    return wait if wait <= _LONGEST_WAIT_S else None


def _explain(error: Exception, repo: str, revision: str | None) -> DownloadError:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        hint = f"ask for access at {constants.ENDPOINT}/{repo} and set HF_TOKEN"
        return DownloadError(f"{repo} is gated, and this account has no access", hint=hint)
    if isinstance(error, errors.RepositoryNotFoundError | errors.DisabledRepoError):
        hint = "check the name; for a private repository set HF_TOKEN"
        return UnavailableError(f"{repo} is not on the Hub, or is private", hint=hint)
    if isinstance(error, errors.RevisionNotFoundError):
        hint = "name one of its branches, tags or commits"
        return DownloadError(f"{repo} has no revision {revision}", hint=hint)
    status = _status(error)
    if status in {401, 403}:
        hint = "check HF_TOKEN: it may be missing, expired or without the right to read this repository"
        return DownloadError(f"the Hub refuses access to {repo} (HTTP {status})", hint=hint)
    if status == 429:
        hint = f"wait some minutes, then {AGAIN_HINT}; with HF_TOKEN set the limits are higher"
        return UnreachableError("the Hub takes no more requests from here for now (HTTP 429)", hint=hint)
    if status is not None:
        return UnreachableError(f"the Hub answered HTTP {status} for {repo}", hint=AGAIN_HINT)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        hint = "free some space, or point HF_HOME at another disk"
        return DownloadError(f"the disk of {constants.HF_HUB_CACHE} is full", hint=hint)
    if isinstance(error, OSError) and error.filename is not None:
        message = f"cannot write {error.filename}: {error.strerror}"
        return DownloadError(message, hint="HF_HOME is where downloads go")
    message = f"the connection to {constants.ENDPOINT} failed ({type(error).__name__})"
    return UnreachableError(message, hint=f"check the network and any proxy, then {AGAIN_HINT}")
