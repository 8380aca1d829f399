"""The device that a user names."""

from __future__ import annotations

import argparse

import torch

from m3el_fast.errors import InputError


def add_device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: a GPU where there is one)")


def named_device(name: str | None) -> torch.device:
    """The device called ``name``; None = a GPU where there is one.

    Raises:
        InputError: this machine has no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        there = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        raise InputError("device", f"one of this machine: {', '.join(['cpu', *there])}", name)
    return device
