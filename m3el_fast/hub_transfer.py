"""The Hugging Face Hub: a repository's files from it and to it, its refusals as one line."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.errors import HTTPError as ConnectionFailure  # type: ignore[attr-defined]  # of its HTTP library
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from m3el_fast.errors import InputError

CARD_FILE = "README.md"
INDEX_FOLDER = "index"

_FAILURES = (OSError, ValueError, ConnectionFailure)  # ValueError: a bad name, metadata that the Hub refuses


def download(name: str, with_index: bool, **options: Any) -> Path:
    """A repository's files in the local cache; what is there already, or in part, is not fetched again.

    Args:
        name: ``owner/model``.
        with_index: the folder ``index/`` too.
        options: of ``snapshot_download``: ``revision``, ``token``, ``cache_dir``, ...

    Raises:
        InputError: neither the Hub nor the cache gives it.
    """
    patterns: dict[str, Any] = {} if with_index else {"ignore_patterns": [f"{INDEX_FOLDER}/*"]}
    try:
        return Path(snapshot_download(name, **patterns, **options))
    except _FAILURES as error:
        unreached = error.__cause__ or error  # of what is not in the cache either
        if isinstance(unreached, ConnectionFailure) and not isinstance(error, HfHubHTTPError):
            got = f"no such folder, none in the cache, and no connection to {constants.ENDPOINT}: {_said(unreached)}"
        else:
            got = f"no such folder, and the Hub says: {_said(error)}"
        raise InputError(name, "a checkpoint folder or a Hub name", got) from None


class Repository:
    """A model repository on the Hub that is written to; made where there is none.

    Args:
        name: ``owner/model``, or ``model`` for the token's owner.
        private: of a new one; None = as the owner's settings say.
        token: None = the one of ``hf auth login``.
        branch: to commit to, None = main.

    Raises:
        InputError: the name cannot be one, or the Hub refuses it.
    """

    def __init__(self, name: str, private: bool | None, token: str | None, branch: str | None) -> None:
        require_repository_name(name)
        self.api, self.branch = HfApi(token=token), branch
        with _refusals(name, "a repository to write to"):
            self.name = self.api.create_repo(name, private=private, exist_ok=True).repo_id
            self.files = set(self.api.list_repo_files(self.name, revision=branch))

    def card(self) -> bytes | None:
        """The card that is there."""
        if CARD_FILE not in self.files:
            return None
        with _refusals(self.name, "a repository whose card can be read"):
            path = self.api.hf_hub_download(self.name, CARD_FILE, revision=self.branch)
        return Path(path).read_bytes()

    def upload(self, folder: Path, message: str, measured: Collection[str] = ()) -> str:
        """Make ``folder`` the repository's checkpoint; returns the address of the commit.

        It is one commit, for the files of another index have the same names: whoever downloads meanwhile gets the
        checkpoint of before (``upload_folder`` makes several commits of what takes long). An index that was there and
        is not in ``folder`` is removed, as are those of the files ``measured``, which are true of one checkpoint; other
        files stay.
        """
        own = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        gone = self.files - own.keys()
        stale = sorted(file for file in gone if file in measured or file.startswith(f"{INDEX_FOLDER}/"))
        changes: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationDelete(file) for file in stale]
        with _refusals(self.name, "a repository to write to"):
            changes += [CommitOperationAdd(name, path) for name, path in sorted(own.items())]
            return self.api.create_commit(self.name, changes, commit_message=message, revision=self.branch).commit_url


def require_repository_name(name: str) -> None:
    """Refuse what cannot be a repository's name. Raises InputError."""
    try:
        validate_repo_id(name)
    except ValueError as error:
        raise InputError(name, "a Hub name like owner/model", _said(error)) from None


@contextmanager
def _refusals(name: str, expected: str) -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        if isinstance(error, HfHubHTTPError | ValueError):
            got = f"a refusal of the Hub: {_said(error)}"
        elif isinstance(error, ConnectionFailure):
            got = f"no connection to {constants.ENDPOINT}: {_said(error)}"
        else:
            got = _said(error)
        raise InputError(name, expected, got) from None


def _said(error: Exception) -> str:
    """What went wrong, in one line; the reason of an HTTP error stands below its first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines) if isinstance(error, HfHubHTTPError | ValueError) else lines[0]
