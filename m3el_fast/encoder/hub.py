"""Reading a Hugging Face model's files from a folder, the local cache or the hub, with errors that say what to do."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import constants
from safetensors import SafetensorError

from m3el_fast.errors import InputError

T = TypeVar("T")


def fetch(where: str, what: str, name: str, load: Callable[[bool], T]) -> T:
    """``load(local_files_only)`` for a folder or hub name: local files first, the hub only for what is not there.

    Asking locally first keeps a cached model usable offline without the hub client's half minute of retries.

    Args:
        where: the configuration key, for the error.
        what: what is read ("weights", "tokenizer", ...), for the error.
        name: folder or hub name.
        load: must raise OSError where its files cannot be found.

    Raises:
        InputError: the folder lacks the files, or they are neither cached nor to be had from the hub.
    """
    try:
        return load(True)
    except SafetensorError as error:
        raise InputError(f"{where}, {name}", f"readable {what}", _first_line(error), "Fetch the model again") from None
    except OSError as error:
        if Path(name).exists():
            raise InputError(f"{where}, {name}", f"a model folder with its {what}", _first_line(error)) from None
        if name.count("/") > 1 or name.startswith((".", "/", "~")):
            expected = "a model folder or a Hugging Face model name"
            raise InputError(where, expected, f"{name}: no such folder") from None
    if not _hub_answers():
        raise _not_found(where, what, name, f"{name}, not cached here, and no connection to {constants.ENDPOINT}")
    try:
        return load(False)
    except OSError as error:
        raise _not_found(where, what, name, f"{name}: {_first_line(error)}") from None


def _not_found(where: str, what: str, name: str, got: str) -> InputError:
    hint = (
        f"On a machine with a network run `hf download {name} --local-dir FOLDER` and give the folder instead of the "
        f"name, or set HF_HOME to a cache that holds the model"
    )
    return InputError(where, f"a model whose {what} can be loaded", got, hint)


def _hub_answers() -> bool:
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(constants.ENDPOINT, timeout=10):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError as error:
        # A certificate that urllib does not know may be known to the hub's client.
        return isinstance(getattr(error, "reason", None), ssl.SSLError)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
