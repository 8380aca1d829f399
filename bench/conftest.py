"""Options, machine description, indexes and the table at the end; see README.md."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu_cases as gpu
from bench import machine
from bench.gpu_device import device
from bench.gpu_timing import GPUMeasure, Noted
from bench.measure import Measure, table
from bench.scales import SCALES, Scale

_ENTITY_BYTES = 18_000  # of an index, at most: 10.7 kB of text, 0.61 x 10.2 kB of image, ids and names

RESULTS = pytest.StashKey[list[dict[str, Any]]]()
CEILINGS = pytest.StashKey[dict[str, float]]()


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
    config.stash[CEILINGS] = {}


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["m3el_fast"] = machine.describe()
    machine_info["scale"] = scale_name(config)
    machine_info["ceilings"] = config.stash[CEILINGS]


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """What was recorded, not what an error or an interrupt cut off; without the single times: a file stays small."""
    output_json["benchmarks"] = [entry for entry in output_json["benchmarks"] if "name" in entry["extra_info"]]
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """GPU benchmarks: every form of every plan of the file, made when its turn comes."""
    if "gpu_cases" in metafunc.fixturenames:
        plans = metafunc.module.plans(gpu_sizes(metafunc.config))
        metafunc.parametrize(("name", "form"), [(plan.name, form) for plan in plans for form in plan.forms])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("run_benchmarks") and config.stash[RESULTS]:
        terminalreporter.section("results")
        terminalreporter.write_line("; ".join(f"{name}: {value}" for name, value in machine.describe().items()))
        terminalreporter.write_line(table(config.stash[RESULTS]))


def scale_name(config: pytest.Config) -> str:
    given: str | None = config.getoption("scale")
    return given or ("default" if config.getoption("run_benchmarks") else "tiny")


def gpu_sizes(config: pytest.Config) -> gpu.Sizes:
    """A GPU works on the papers' sizes at every scale but ``tiny``."""
    return gpu.TINY if scale_name(config) == "tiny" else gpu.PAPER_SIZES


@pytest.fixture(scope="session")
def scale(request: pytest.FixtureRequest) -> Scale:
    return SCALES[scale_name(request.config)]


@pytest.fixture(scope="session")
def records() -> dict[str, float]:
    """Median seconds per pair (or per step) of what this session has timed, by name: peers come first in each file."""
    return {}


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark: Any, records: dict[str, float]) -> Measure:
    if request.config.getoption("run_benchmarks"):  # every results file has its machine's ceilings
        for rates in ("matmul_rates", "read_bandwidth"):
            request.getfixturevalue(rates)
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
def index(folder: Path) -> Callable[[str, int], str]:
    """Folder of the index of a model (``m3el``, ``mimic``) and a number of entities: found, or built."""

    @torch.inference_mode()
    def build(kind: str, entities: int) -> str:
        from bench.features import SyntheticKB, synthetic_model
        from m3el_fast.index import EntityIndex

        path = folder / f"{kind}-{entities}"
        if not path.exists():
            EntityIndex.build(synthetic_model(kind), SyntheticKB(entities), path, progress=False)
        return str(path)

    return build


@pytest.fixture(scope="session")
def expected(index: Callable[[str, int], str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], str]:
    """File with the scores [CHECKED, E] fp32 that the reference gives the first mentions on an index: computed once a
    session, for all cases whose results are compared with it."""
    folder = tmp_path_factory.mktemp("expected")

    def scores(kind: str, entities: int) -> str:
        from bench import oracle
        from bench.features import CHECKED, SyntheticMentions, synthetic_model
        from m3el_fast.index import EntityIndex

        path = folder / f"{kind}-{entities}.pt"
        if not path.exists():
            model = synthetic_model(kind)
            side = model.mention_side(SyntheticMentions(entities).inputs(torch.arange(CHECKED)))
            torch.save(oracle.all_scores(model.matcher, side, EntityIndex.open(index(kind, entities), model)), path)
        return str(path)

    return scores


@pytest.fixture(scope="session")
def large_entities(scale: Scale, folder: Path) -> int:
    """Entities of the large KB: as many as the scale asks for and the disk holds."""
    if not scale.large:
        pytest.skip("a KB larger than memory is built with --scale million (or tiny)")
    if (folder / f"m3el-{scale.large}").exists():
        return scale.large
    return min(scale.large, int(0.9 * shutil.disk_usage(folder).free / _ENTITY_BYTES))


@pytest.fixture(scope="session")
def read_bandwidth(scale: Scale, folder: Path, pytestconfig: pytest.Config) -> float:
    """Bytes a second of reading a mapped file that lies in the page cache, with all threads."""
    rate = machine.read_bandwidth(folder / "bandwidth.bin", scale.bandwidth_bytes)
    pytestconfig.stash[CEILINGS]["bytes/s"] = rate
    return rate


@pytest.fixture(scope="session")
def matmul_rates(pytestconfig: pytest.Config) -> tuple[float, float]:
    """FLOP a second of large matrix products with all threads, fp32 and bf16."""
    fp32, bf16 = machine.matmul_rate(torch.float32, 2048), machine.matmul_rate(torch.bfloat16, 2048)
    pytestconfig.stash[CEILINGS] |= {"fp32 FLOP/s": fp32, "bf16 FLOP/s": bf16}
    return fp32, bf16


@pytest.fixture(scope="session")
def gpu_noted() -> Noted:
    return Noted()


@pytest.fixture
def gpu_measure(
    request: pytest.FixtureRequest, benchmark: Any, records: dict[str, float], gpu_noted: Noted
) -> GPUMeasure:
    return GPUMeasure(benchmark, records, request.config.stash[RESULTS], gpu_noted)


@pytest.fixture(scope="module")
def gpu_cases(
    request: pytest.FixtureRequest, index: Callable[[str, int], str], expected: Callable[[str, int], str]
) -> Iterator[gpu.Cases]:
    """What the file's ``plans`` make, on a GPU or in its place."""
    with device() as where:
        if where == "cpu" and request.config.getoption("run_benchmarks"):
            pytest.skip("no CUDA device: interpreted and emulated kernels are not timed")
        plans = list(request.module.plans(gpu_sizes(request.config)))
        yield gpu.Cases(plans, gpu.Setting(where, index, expected))
