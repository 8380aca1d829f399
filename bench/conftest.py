"""Options, machine description, indexes and the table at the end; see README.md."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import machine
from bench.measure import Measure, table
from bench.scales import SCALES, Scale

_ENTITY_BYTES = 18_000  # of an index, at most: 10.7 kB of text, 0.61 x 10.2 kB of image, ids and names

RESULTS = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("m3el_fast benchmarks")
    group.addoption("--benchmark", action="store_true", dest="run_benchmarks", help="time, not only check")
    group.addoption("--scale", choices=tuple(SCALES), help="default: tiny without --benchmark, default with it")
    group.addoption("--kb-folder", type=Path, help="keep the synthetic indexes here, and use those that are there")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("run_benchmarks"):
        config.option.benchmark_disable = True
    config.stash[RESULTS] = []


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["m3el_fast"] = machine.describe()
    machine_info["scale"] = scale_name(config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("run_benchmarks") and config.stash[RESULTS]:
        terminalreporter.section("results")
        terminalreporter.write_line("; ".join(f"{name}: {value}" for name, value in machine.describe().items()))
        terminalreporter.write_line(table(config.stash[RESULTS]))


def scale_name(config: pytest.Config) -> str:
    given: str | None = config.getoption("scale")
    return given or ("default" if config.getoption("run_benchmarks") else "tiny")


@pytest.fixture(scope="session")
def scale(request: pytest.FixtureRequest) -> Scale:
    return SCALES[scale_name(request.config)]


@pytest.fixture(scope="session")
def records() -> dict[str, float]:
    """Median seconds per pair (or per step) of what this session has timed, by name: peers come first in each file."""
    return {}


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark: Any, records: dict[str, float]) -> Measure:
    return Measure(benchmark, records, request.config.stash[RESULTS])


@pytest.fixture(scope="session")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where indexes live; made where it is not there."""
    given: Path | None = request.config.getoption("kb_folder")
    if given is None:
        return tmp_path_factory.mktemp("kb")
    given.mkdir(parents=True, exist_ok=True)
    return given


@pytest.fixture(scope="session")
def index(folder: Path) -> Iterator[Callable[[str, int], str]]:
    """Folder of the index of a model (``m3el``, ``mimic``) and a number of entities: found, or built."""
    from bench.features import SyntheticKB, synthetic_model
    from m3el_fast.index import EntityIndex

    def build(kind: str, entities: int) -> str:
        path = folder / f"{kind}-{entities}"
        if not path.exists():
            EntityIndex.build(synthetic_model(kind), SyntheticKB(entities), path, progress=False)
        return str(path)

    with torch.inference_mode():
        yield build


@pytest.fixture(scope="session")
def large_entities(scale: Scale, folder: Path) -> int:
    """Entities of the large KB: as many as the scale asks for and the disk holds."""
    if not scale.large:
        pytest.skip("a KB larger than memory is built with --scale million (or tiny)")
    if (folder / f"m3el-{scale.large}").exists():
        return scale.large
    return min(scale.large, int(0.9 * shutil.disk_usage(folder).free / _ENTITY_BYTES))


@pytest.fixture(scope="session")
def read_bandwidth(scale: Scale, folder: Path) -> float:
    """Bytes a second of reading a mapped file that lies in the page cache, with all threads."""
    return machine.read_bandwidth(folder / "bandwidth.bin", scale.bandwidth_bytes)


@pytest.fixture(scope="session")
def matmul_rates() -> tuple[float, float]:
    """FLOP a second of large matrix products with all threads, fp32 and bf16."""
    return machine.matmul_rate(torch.float32, 2048), machine.matmul_rate(torch.bfloat16, 2048)
