"""``evaluate``, ``train``, ``data`` and ``m3el``: from their arguments to their output and exit status."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from m3el_fast import __main__ as dispatcher
from m3el_fast import __version__
from m3el_fast import evaluate as evaluate_module
from m3el_fast.data.__main__ import main as data_main
from m3el_fast.dataset import load_dataset
from m3el_fast.errors import run_command
from m3el_fast.evaluate import ROW_NAMES
from m3el_fast.evaluate import main as evaluate
from m3el_fast.index import EntityIndex
from m3el_fast.info import forced_level
from m3el_fast.models import load_model
from m3el_fast.ops import native
from m3el_fast.train import main as train
from tiny import tiny_config
from trained import Trained, failure, trained_in

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    yield from trained_in(tmp_path_factory.mktemp("trained"))


def rows(printed: str) -> dict[str, list[float]]:
    """The rows of a printed table by name."""
    names = [*ROW_NAMES.values(), "untrained"]
    lines = ((name, line) for line in printed.splitlines() for name in names if line.startswith(name))
    return {name: [float(cell) for cell in line.removeprefix(name).split()] for name, line in lines}


# -- evaluate ---------------------------------------------------------------------------------------------------------


def test_evaluation_equals_that_of_the_training(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate([trained.checkpoint, "--output", str(tmp_path / "new" / "metrics.json")])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "new" / "metrics.json").read_text())
    del found["calibration"]
    expected = json.loads((trained.run / "results.json").read_text())
    assert {ROW_NAMES[name]: row for name, row in found.items()} | {"untrained": expected["untrained"]} == expected
    assert f"{trained.data}, test: 24 mentions, left out: 1 nil, 1 not in the KB; KB: 12 entities" in printed
    table = rows(printed)
    assert table.keys() == set(ROW_NAMES.values())
    for name, values in table.items():
        m = expected[name]
        assert values[-1] == pytest.approx(m["mr"], abs=0.0501)  # one digit is printed
        assert values[:-1] == pytest.approx([*m["hits"].values(), m["mrr"]], abs=5e-5)
    # a second training call shows the same table
    train(["--config", str(trained.run / "checkpoint" / "config.yaml"), "--output", str(trained.run)])
    shown = rows(capsys.readouterr().out)
    assert {name: shown[name] for name in table} == table


@pytest.mark.parametrize("split", ["train", "dev"])
def test_other_splits(split: str, trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate([trained.checkpoint, "--split", split])
    assert f"{trained.data}, {split}: 24 mentions" in capsys.readouterr().out


def test_mentions_made_for_training_are_not_evaluated(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Path(shutil.copytree(trained.checkpoint, tmp_path / "checkpoint"))
    config = (checkpoint / "config.yaml").read_text()
    assert "kb_mentions: 0" in config
    (checkpoint / "config.yaml").write_text(config.replace("kb_mentions: 0", "kb_mentions: 3"))
    evaluate([str(checkpoint), "--split", "train"])
    assert f"{trained.data}, train: 24 mentions, left out" in capsys.readouterr().out


def test_another_data_set(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained.copy_data(tmp_path / "other")
    records = json.loads((folder / "TINY_test.json").read_text())
    (folder / "TINY_test.json").write_text(json.dumps(records[:3]))
    evaluate([trained.checkpoint, "--data", str(folder)])
    assert f"{folder}, test: 3 mentions; KB: 12 entities" in capsys.readouterr().out


def test_an_index_in_place_of_encoding(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model(trained.checkpoint)
    data = load_dataset(model.config.data, trained.data, model.encoder, [], progress=False)
    ids = [entity.qid for entity in data.kb.entities]
    index = EntityIndex.build(model, data.entities, tmp_path / "index", ids=ids, progress=False)
    evaluate([trained.checkpoint])
    encoded = capsys.readouterr().out
    evaluate([trained.checkpoint, "--index", str(tmp_path / "index")])
    printed = capsys.readouterr().out
    assert printed == encoded
    assert re.search(
        r"^\d[\d,]* pairs scanned, [\d,]+ scored again \(.*%\); union: largest error .*, margin ", printed, re.M
    )
    index.remove(["Q3"])
    evaluate([trained.checkpoint, "--index", str(tmp_path / "index")])
    assert "test: 22 mentions, left out: 1 nil, 3 not in the KB; KB: 11 entities" in capsys.readouterr().out
    message = failure(evaluate, [trained.checkpoint, "--index", str(tmp_path / "none")], capsys)
    assert message.startswith(f"{tmp_path / 'none'}: expected an entity index")


def test_strict_names_the_mention(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    message = failure(evaluate, [trained.checkpoint, "--strict"], capsys)
    where = f"{trained.data}, split test, mention test-absent"
    assert message == f"{where}: expected an answer that is in kb_entity.json or nil, got Q999 (1 such)"


BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing": (Path.unlink, "missing", "no such file"),
    "corrupt": (lambda path: path.write_bytes(b"no picture"), "unreadable", "not an image of a known format"),
}


@pytest.mark.parametrize(("damage", "kind", "reason"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("image", ["kb_image/green.jpg", "mention_image/blue.jpg"])
def test_an_image_that_cannot_be_used(
    image: str,
    damage: Callable[[Path], object],
    kind: str,
    reason: str,
    trained: Trained,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = trained.copy_data(tmp_path / "data")
    damage(folder / image)
    evaluate([trained.checkpoint, "--data", str(folder)])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"1 of 8 images {kind}, first: {folder / image}: {reason}"
    output = tmp_path / "metrics.json"
    arguments = [trained.checkpoint, "--data", str(folder), "--strict-images", "--output", str(output)]
    message = failure(evaluate, arguments, capsys)
    hint = "Without strict images it counts as no image"
    assert message == f"{folder / image}: expected a readable image, got {reason}. {hint}"
    assert not output.exists()


def test_evaluate_refuses(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none = tmp_path / "none"
    message = failure(evaluate, [str(none)], capsys)
    assert message == f"{none}: expected a checkpoint folder or a Hub name like owner/model, got no such folder"
    message = failure(evaluate, [trained.checkpoint, "--data", str(none)], capsys)
    assert message == f"{none}: expected a folder with a data set in the MIMIC layout, got no such folder"
    folder = trained.copy_data(tmp_path / "data")
    (folder / "TINY_test.json").unlink()
    message = failure(evaluate, [trained.checkpoint, "--data", str(folder)], capsys)
    assert message == f"{folder}: expected one file *_test.json, got none"
    message = failure(evaluate, [trained.checkpoint, "--output", str(folder)], capsys)
    assert message == f"{folder}: expected a file to write, got a folder"
    inside = folder / "kb_entity.json" / "metrics.json"
    message = failure(evaluate, [trained.checkpoint, "--output", str(inside)], capsys)
    assert message == f"{inside}: expected a file in a folder, got {folder / 'kb_entity.json'}, which is a file"
    message = failure(evaluate, [trained.checkpoint, "--output", "/proc/metrics.json"], capsys)
    assert message == "/proc/metrics.json: expected a file that can be written, got No such file or directory"
    os.mkfifo(tmp_path / "pipe")
    message = failure(evaluate, [trained.checkpoint, "--output", str(tmp_path / "pipe")], capsys)
    assert message == f"{tmp_path / 'pipe'}: expected a file to write, got a device or a pipe"
    message = failure(evaluate, [trained.checkpoint, "--output", str(tmp_path / ("x" * 300))], capsys)
    assert message.endswith("expected a file that can be written, got File name too long")


def test_a_checkpoint_without_data_needs_a_folder(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = evaluate_module.load_model

    def without_data(name: str) -> object:
        model = real(name)
        data = model.config.data.model_copy(update={"dir": None})
        model.config = model.config.model_copy(update={"data": data})
        return model

    monkeypatch.setattr(evaluate_module, "load_model", without_data)
    message = failure(evaluate, [trained.checkpoint], capsys)
    assert message == "--data: expected a data set folder (the checkpoint names none), got nothing"


def test_metrics_that_cannot_be_written_leave_the_old_ones(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("old")

    def fail(source: Path, target: Path) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr("m3el_fast.files.os.replace", fail)
    with pytest.raises(OSError, match="read-only"):
        evaluate([trained.checkpoint, "--output", str(path)])
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


# -- train ------------------------------------------------------------------------------------------------------------

BAD_ARGUMENTS = {
    "no-value": (["--set", "train.lr"], "--set: expected KEY=VALUE, e.g. train.lr=1e-4, got train.lr"),
    "no-key": (["--set", "=3"], "--set: expected KEY=VALUE, e.g. train.lr=1e-4, got =3"),
    "no-yaml": (["--set", "train.lr=["], "--set train.lr: expected a value as in YAML, got ["),
    "unknown-key": (["--set", "train.rate=1"], "{config}, key train.rate: expected a known key, got an unknown one"),
    "wrong-type": (["--set", "train.epochs=many"], "{config}, key train.epochs: expected a valid integer, got 'many'"),
    "below-a-value": (
        ["--set", "train.lr.warmup=1"],
        "--set train.lr.warmup: expected a key of the configuration, got a value where a section is needed",
    ),
    "no-data": (
        ["--data", "/no/such/folder"],
        "/no/such/folder: expected a folder with a data set in the MIMIC layout, got no such folder",
    ),
    "batch": (
        ["--set", "train.accumulation=3"],
        "train.batch_size: expected a multiple of 3 (1 processes x 3 accumulation steps), got 8",
    ),
    "strict": (
        ["--set", "data.strict=true"],
        "{data}, split train, mention train-absent: expected an answer that is in kb_entity.json or nil, "
        "got Q999 (1 such)",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_train_refuses_before_it_writes(
    arguments: list[str], message: str, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(tiny_config(trained.data).dump())
    output = tmp_path / "run"
    found = failure(train, ["--config", str(config), "--output", str(output), *arguments], capsys)
    assert found == message.format(config=config, data=trained.data)
    assert not output.exists()


def test_train_refuses_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, output = tmp_path / "run.yaml", tmp_path / "run"
    for content, message in (
        ("encoder: {scratch: {}}\nmodle: {}", f"{config}, key modle: expected a known key, got an unknown one"),
        ("", f"{config}, key (top): expected a mapping, got None"),
    ):
        config.write_text(content)
        assert failure(train, ["--config", str(config), "--output", str(output)], capsys) == message
    message = failure(train, ["--output", "/proc/no-run"], capsys)
    assert message.startswith("/proc/no-run/results.json: expected a file that can be written, got ")
    message = failure(train, ["--config", "wikimel", "--output", str(output)], capsys)
    assert message.startswith("--data: expected the folder of a data set to train wikimel on, got none. Only ")
    message = failure(train, ["--config", "wikimell", "--output", str(output)], capsys)
    assert message.startswith("wikimell: expected a YAML file or one of the presets ")
    assert "wikimel, " in message
    config.write_text("encoder: {scratch: {}}")
    message = failure(train, ["--config", str(config), "--output", str(config)], capsys)
    assert message == f"{config}: expected a run folder, got a file"
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_train_with_strict_images(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained.copy_data(tmp_path / "data")
    (folder / "kb_image" / "white.jpg").write_bytes(b"")
    config = tmp_path / "run.yaml"
    config.write_text(tiny_config(folder, epochs=1).dump())
    arguments = ["--config", str(config), "--output", str(tmp_path / "run")]
    message = failure(train, [*arguments, "--strict-images"], capsys)
    assert message.startswith(f"{folder / 'kb_image' / 'white.jpg'}: expected a readable image, got an empty file")
    assert not (tmp_path / "run").exists()
    train(arguments)
    path = folder / "kb_image" / "white.jpg"
    assert f"1 of 8 images unreadable, first: {path}: an empty file" in capsys.readouterr().out.splitlines()


# -- processes and the dispatcher -------------------------------------------------------------------------------------


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-m", *arguments], env=environment, capture_output=True, text=True, timeout=60
    )


def test_a_process_ends_with_one_line_and_status_2(trained: Trained) -> None:
    done = python("m3el_fast", "evaluate", trained.checkpoint, "--strict")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {trained.data}, split test, mention test-absent: ")


def dispatch(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["m3el", *arguments])
    dispatcher.main()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_m3el_is_the_same_as_the_module(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dispatch(monkeypatch, "evaluate", trained.checkpoint)
    expected = json.loads((trained.run / "results.json").read_text())
    assert rows(capsys.readouterr().out)["full model"][0] == pytest.approx(
        expected["full model"]["hits"]["1"], abs=5e-5
    )


@pytest.mark.parametrize("command", dispatcher.COMMANDS)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_every_command_is_there(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        dispatch(monkeypatch, command, "--help")
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: m3el {command} ")


@pytest.mark.skipif(bool(native.MISSING), reason="needs the native extension")
def test_info_names_the_instruction_set_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    for level, said in (
        ("scalar", "isa in force: scalar, by M3EL_CPU_ISA"),
        ("sse", "M3EL_CPU_ISA: expected scalar, avx2, avx512, avx512bf16 or amx, got sse"),
        ("", ""),
    ):
        monkeypatch.setenv("M3EL_CPU_ISA", level)
        assert forced_level() == said


def test_the_dispatcher_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(monkeypatch, "--version")
    assert capsys.readouterr().out == f"m3el_fast {__version__}\n"
    dispatch(monkeypatch, "--help")
    usage = capsys.readouterr().out
    assert all(f"\n  {command} " in usage for command in ("train", "evaluate", "link", "data"))
    for arguments, got in (((), "no command"), (("lnik",), "unknown command 'lnik'")):
        with pytest.raises(SystemExit) as end:
            dispatch(monkeypatch, *arguments)
        assert end.value.code == 2
        assert capsys.readouterr().err.endswith(f"\nerror: {got}\n")


def test_data_checks_what_training_reads(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    data_main(["check", str(trained.data)])
    printed = capsys.readouterr().out
    assert "entities: 12, 12 with desc" in printed
    assert "test: 26 mentions, 1 nil, 1 with an answer that is not in the KB" in printed


def test_an_interrupt_is_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run_command(interrupted)
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
