"""Live migration between processes: every transport, a guest that never stops writing and checks what it wrote."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.migration.process import SCALE, Process, counting_guest


@pytest.fixture(scope="module")
def floppy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_guest(tmp_path_factory.mktemp("guest"))


@pytest.fixture
def source(tmp_path: Path, floppy: Path) -> Iterator[Process]:
    with Process(tmp_path, "-fda", floppy, "-snapshot") as process:
        process.wait_passes()
        yield process


def destination(tmp_path: Path, floppy: Path, uri: str, *more: str) -> Process:
    return Process(tmp_path, "-fda", floppy, "-snapshot", "-incoming", uri, *more)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_running_guest_moves_over_a_socket(source: Process, tmp_path: Path, floppy: Path, kind: str) -> None:
    uri = f"unix:{tmp_path}/mig" if kind == "unix" else f"tcp:127.0.0.1:{free_port()}"
    with destination(tmp_path, floppy, uri) as target:
        assert "inmigrate" in target.mon.run("info status")
        assert source.mon.run(f"migrate {uri}") == ""
        assert source.mon.run("info status") == "VM status: paused (postmigrate)"
        info = source.mon.run("info migrate")
        assert "Migration status: completed" in info and "\ndowntime: " in info
        target.wait_passes()
        assert target.mon.run("info status") == "VM status: running"
        source.passes()


@pytest.mark.parametrize("out,into", [("file:{}", "file:{}"), ("exec:cat >{}", "exec:cat {}")])
def test_a_guest_goes_through_a_file(source: Process, tmp_path: Path, floppy: Path, out: str, into: str) -> None:
    state = tmp_path / "state"
    assert source.mon.run(f'migrate "{out.format(state)}"') == ""
    with destination(tmp_path, floppy, into.format(state)) as target:
        target.wait_passes()


def test_defer_waits_for_the_monitor(source: Process, tmp_path: Path, floppy: Path) -> None:
    state = tmp_path / "state"
    assert "'-incoming' was not specified" in source.mon.run(f"migrate_incoming file:{state}")
    source.mon.run(f"migrate file:{state}")
    with destination(tmp_path, floppy, "defer") as target:
        target.mon.run("cont")
        assert target.mon.run("info status") == "VM status: paused (inmigrate)"
        assert target.mon.run(f"migrate_incoming file:{state}") == ""
        target.wait_passes()


def test_a_failed_migration_leaves_the_source_running(source: Process, tmp_path: Path, floppy: Path) -> None:
    assert "valid migration protocol" in source.mon.run("migrate foo:bar")
    assert "Connection refused" in source.mon.run(f"migrate tcp:127.0.0.1:{free_port()}")
    assert "status: failed (Failed to connect" in source.mon.run("info migrate")
    assert "Broken pipe" in source.mon.run('migrate "exec:exit 1"')
    assert "status 3" in source.mon.run('migrate "exec:cat >/dev/null; exit 3"')
    source.wait_passes()
    with destination(tmp_path, floppy, f"unix:{tmp_path}/mig", "-m", "32") as target:
        target.mon.run("info status")
        answer = source.mon.run(f"migrate unix:{tmp_path}/mig")
        assert "ram is 16777216 in the saved machine, 33554432 in this one" in answer
        assert target.wait() == 1 and "load of migration failed" in target.stderr
    assert source.mon.run("info status") == "VM status: running"
    source.wait_passes()


def test_the_destination_dies_half_way(source: Process, tmp_path: Path, floppy: Path) -> None:
    uri = f"unix:{tmp_path}/mig"
    source.mon.run("migrate_set_parameter max-bandwidth 2M")
    with destination(tmp_path, floppy, uri) as target:
        target.mon.run("info status")
        source.mon.run(f"migrate -d {uri}")
        time.sleep(0.1)
        target.process.kill()
    deadline = time.monotonic() + 20 * SCALE
    while "status: failed" not in source.mon.run("info migrate"):
        assert time.monotonic() < deadline
    source.wait_passes()
    assert source.mon.run("info status") == "VM status: running"


def test_while_it_runs_monitors_answer_and_the_machine_is_left_alone(source: Process) -> None:
    source.mon.run("migrate_set_parameter max-bandwidth 100k")
    source.mon.send('migrate "exec:cat >/dev/null"')  # its prompt comes when it has ended
    deadline = time.monotonic() + 10 * SCALE
    while "Migration status: active" not in source.other.run("info migrate"):
        assert time.monotonic() < deadline
    begin = time.monotonic()
    for command in ("stop", "cont", "system_reset", "savevm x", "migrate file:x"):
        assert source.other.run(command) in (
            f"Error: '{command.split()[0]}' is not possible while 'migrate' is running",
            "unknown command: 'savevm'",
        )
    assert time.monotonic() - begin < 5 * 0.05 * SCALE
    assert source.other.run("migrate_cancel") == ""
    assert source.mon.until_prompt().endswith("cancelled\n(qemu) ")
    assert "Migration status: cancelled" in source.mon.run("info migrate")
    source.wait_passes()


def test_quit_ends_a_migration_and_the_program(source: Process) -> None:
    source.mon.run('migrate -d "exec:sleep 100"')
    source.mon.send("quit")
    assert source.wait() == 0


def test_parameters(source: Process) -> None:
    run = source.mon.run
    own = [line for line in run("info migrate_parameters").splitlines() if line.startswith(("max-band", "downtime"))]
    assert own == ["max-bandwidth: 134217728 bytes/second", "downtime-limit: 300 ms"]
    refused = "Error: migration parameter 'multifd-channels' is not supported"
    assert run("migrate_set_parameter multifd-channels 4") == refused
    assert run("migrate_set_parameter foo 1") == "Error: invalid parameter value: foo"
    assert "in the range of 0 to (2000 * 1000) ms" in run("migrate_set_parameter downtime-limit 100000000")
    assert run("migrate_set_parameter max-bandwidth 10M") + run("migrate_set_parameter downtime-limit 5") == ""
    assert "\nmax-bandwidth: 10485760 bytes/second\ndowntime-limit: 5 ms\n" in run("info migrate_parameters")


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed")
def test_parameters_are_shown_as_by_qemu(source: Process) -> None:
    done = subprocess.run(["qemu-system-x86_64", "-accel", "tcg", "-S", "-display", "none", "-monitor", "stdio"],
                          input="info migrate_parameters\nquit\n", capture_output=True, text=True)  # fmt: skip
    theirs = [line for line in done.stdout.splitlines() if re.match(r"[a-z-]+: ", line)]
    assert source.mon.run("info migrate_parameters").splitlines() == theirs
