"""What the Hub's client can raise, said in a sentence, and tried again where that helps.

In: a call of huggingface_hub. Out: its result, or a :class:`~onevision.errors.DownloadError`.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, TypeVar

from onevision.errors import DownloadError

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

AGAIN_HINT = "run the same command again: what has arrived is kept and the download goes on from there"

_TRIES = 5
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0


class UnavailableError(DownloadError):
    """This repository cannot be had; another with the same checkpoint may."""


class UnreachableError(DownloadError):
    """The Hub does not answer, or not as it should; the cache may have what is wanted."""


class StalledError(OSError):
    """The client came back without error and without all the files."""


def retried(call: Callable[[], _T], repo: str, revision: str | None) -> _T:
    """Call, again after a while if the Hub is busy or the connection was cut.

    For a file the client itself tries again after a server error and a failure to connect, but neither when
    the Hub limits the rate (HTTP 429) nor when a transfer breaks off.

    Args:
        call: What to do; a file that is there in part is resumed by the client.
        repo: For the message.
        revision: For the message.

    Raises:
        DownloadError: It failed for good.
    """
    for attempt in range(1, _TRIES + 1):
        try:
            return call()
        except OSError as error:
            cause = _root_cause(error)
            wait = _wait(cause, attempt)
            if wait is None or attempt == _TRIES:
                raise _explain(cause, repo, revision) from error
            time.sleep(wait)
        except RuntimeError as error:  # all that hf_xet, the native transfer, raises
            reason = str(error).partition("\n")[0]
            hint = f"{AGAIN_HINT}; HF_HUB_DISABLE_XET=1 takes the plain way"
            raise UnreachableError(f"the download of {repo} failed: {reason}", hint=hint) from error
    raise AssertionError  # the last attempt returns or raises


def _root_cause(error: OSError) -> OSError:
    """The client wraps what happened in "not found locally" when it looks into its cache as a last resort."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, OSError):
        error = error.__cause__
    return error


def _status(error: OSError) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _wait(error: OSError, attempt: int) -> float | None:
    """Seconds until the next attempt, None if there is to be none."""
    from requests.exceptions import ChunkedEncodingError

    backoff: float = _FIRST_WAIT_S * 2 ** (attempt - 1)
    if isinstance(error, ChunkedEncodingError | StalledError):
        return backoff
    if _status(error) != 429:
        return None
    asked: str = error.response.headers.get("Retry-After", "")  # type: ignore[attr-defined]
    wait = float(asked) if asked.isdigit() else backoff
    return wait if wait <= _LONGEST_WAIT_S else None


def _explain(error: OSError, repo: str, revision: str | None) -> DownloadError:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        hint = f"ask for access at {constants.ENDPOINT}/{repo} and set HF_TOKEN"
        return DownloadError(f"{repo} is gated, and this account has no access", hint=hint)
    if isinstance(error, RepositoryNotFoundError | DisabledRepoError):
        hint = "check the name; for a private repository set HF_TOKEN"
        return UnavailableError(f"{repo} is not on the Hub, or is private", hint=hint)
    if isinstance(error, RevisionNotFoundError):
        return DownloadError(
            f"{repo} has no revision {revision}", hint="name a branch, a tag or a commit of it"
        )
    status = _status(error)
    if status in {401, 403}:
        hint = "check HF_TOKEN: it may be missing, expired or without the right to read this repository"
        return DownloadError(f"the Hub refuses access to {repo} (HTTP {status})", hint=hint)
    if status == 429:
        hint = f"wait some minutes, then {AGAIN_HINT}; with HF_TOKEN set the limits are higher"
        return UnreachableError("the Hub takes no more requests from here for now (HTTP 429)", hint=hint)
    if status is not None:
        return UnreachableError(f"the Hub answered HTTP {status} for {repo}", hint=AGAIN_HINT)
    if error.errno == errno.ENOSPC:
        hint = "free some space, or point HF_HOME at another disk"
        return DownloadError(f"the disk of {constants.HF_HUB_CACHE} is full", hint=hint)
    if error.filename is not None:
        message = f"cannot write {error.filename}: {error.strerror}"
        return DownloadError(message, hint="HF_HOME is where downloads go")
    message = f"the connection to {constants.ENDPOINT} failed ({type(error).__name__})"
    return UnreachableError(message, hint=f"check the network and any proxy, then {AGAIN_HINT}")
