"""The command: what it refuses before it loads, and a whole life from the start to a signal."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from m3el_fast.serve.__main__ import main
from serve.serving import Served
from tiny import tiny_model
from trained import failure

REFUSED = {
    "timeout": (["--timeout", "0"], "--timeout: expected a positive number, got 0.0"),
    "requests": (["--max-requests", "-1"], "--max-requests: expected a positive number, got -1"),
    "size": (["--max-mb", "nan"], "--max-mb: expected a positive number, got nan"),
    "infinite": (["--max-mb", "inf"], "--max-mb: expected a positive number, got inf"),
    "port": (["--port", "65536"], "--port: expected a number from 0 (any that is free) to 65535, got 65536"),
    "nil": (["--nil-threshold", "2"], "--nil-threshold: expected a probability, from 0 to 1, got 2.0"),
    "no-calibration": (
        ["--index", "INDEX", "--nil-threshold", "0.5"],
        "--nil-threshold: expected a calibrated checkpoint, got one without",
    ),
    "watch": (["--watch", "-1"], "--watch: expected seconds, or 0, got -1.0"),
    "index": (["--index", "none"], "none: expected an entity index"),
    "no-index": ([], "--index: expected the folder of an index, got none, and the checkpoint comes without"),
    "kb": (["--index", "INDEX", "--kb", "none"], "none: expected a folder with a data set in the MIMIC layout"),
    "device": (["--device", "tpu"], "device: expected one of this machine"),
}


@pytest.fixture(scope="module")
def checkpoint(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command") / "checkpoint"
    served.case.model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(
    options: list[str], message: str, served: Served, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(served.index) if option == "INDEX" else option for option in options]
    assert failure(main, [str(checkpoint), "--port", "0", *arguments], capsys).startswith(message)


def test_a_port_that_is_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    """Found before the checkpoint is looked for."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = failure(main, ["none", "--port", str(port)], capsys)
    assert message.startswith(f"--host, --port: expected an address to listen at, got 127.0.0.1, {port}: ")
    assert message.strip().endswith("address already in use")


def test_an_index_of_another_model(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model(served.case.config, seed=5).save_pretrained(tmp_path / "other")
    message = failure(main, [str(tmp_path / "other"), "--index", str(served.index), "--port", "0"], capsys)
    assert message.startswith(f"{served.index}: expected an index of this model")


@pytest.mark.slow  # a process of its own imports torch
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_from_start_to_signal(number: int, served: Served, tmp_path: Path) -> None:
    """A server with the checkpoint's own index, and clients that ask until it has gone."""
    checkpoint = tmp_path / "checkpoint"
    served.case.model.save_pretrained(checkpoint, index=served.index)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "m3el_fast.serve", str(checkpoint), "--kb", str(served.folder)]
    command += ["--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                assert httpx.get(f"{address}/healthz").json()["index"]["entities"] == 12
                break
            except httpx.ConnectError:
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.1)
        body = {"mentions": [{"mention": "Elm", "sentence": "x"}] * 64, "k": 12}

        def ask_on() -> list[int]:
            found = []
            with contextlib.suppress(httpx.TransportError):
                while True:
                    found.append(httpx.post(f"{address}/link", json=body, timeout=60).status_code)
            return found

        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask_on) for _ in range(8)]
            time.sleep(0.5)
            process.send_signal(number)
            assert {status for one in asked for status in one.result()} == {200}
        process.wait(timeout=60)
    finally:
        process.kill()
        out, error = process.communicate()
    assert out.startswith(f"linking to 12 entities of {checkpoint / 'index'}")
    assert "Traceback" not in error
    assert "Finished server process" in error
