"""savevm, loadvm, delvm on qcow2 disks, with a guest that never stops writing its memory and checks what it wrote."""

from __future__ import annotations

import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pytest

from tests.block.qcow2_images import opened, read
from tests.migration import busy
from tests.migration.process import SCALE, Process, counting_guest

ROW = re.compile(r"^--        (\S+) +[\d.]+ [KM]iB \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \d\d:\d\d:\d\d\.\d{3} {11}$")


@pytest.fixture(scope="module")
def floppy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_guest(tmp_path_factory.mktemp("guest"))


def qcow2(path: Path, *options: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "64M"], check=True)
    return path


def check(image: Path) -> None:
    """No error; clusters leaked by a process that was killed may be there."""
    done = subprocess.run(["qemu-img", "check", image], capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stdout + done.stderr


def machine(folder: Path, floppy: Path, *disks: Path, more: tuple[str, ...] = ()) -> Process:
    drives: list[str] = []
    for disk in disks:
        drives += ["-drive", f"file={disk},format=qcow2"]
    boot = f"file={floppy},format=raw,if=floppy,readonly=on"
    return Process(folder, "-drive", boot, "-boot", "a", *drives, *more)


@pytest.fixture
def process(tmp_path: Path, floppy: Path) -> Iterator[Process]:
    with machine(tmp_path, floppy, qcow2(tmp_path / "a.qcow2"), qcow2(tmp_path / "b.qcow2")) as made:
        made.wait_passes()
        yield made


def tags(process: Process) -> list[str]:
    lines = process.mon.run("info snapshots").splitlines()
    found = [ROW.match(line) for line in lines[2:]]
    assert all(found), lines
    return [match.group(1) for match in found if match]


def test_save_load_again_and_delete(process: Process) -> None:
    run = process.mon.run
    assert run("info snapshots") == "There is no snapshot available."
    assert run("savevm one") == "" and tags(process) == ["one"]
    process.wait_passes()
    for _ in range(5):  # the first maps, the others put back what was written
        assert run("loadvm one") == ""
        process.wait_passes()
    assert run("savevm two") == "" and run("loadvm one") == "" and run("loadvm two") == ""
    process.wait_passes()
    assert run("delvm two") == "" and tags(process) == ["one"]
    process.wait_passes()
    assert run("loadvm one") == "" and run("savevm one") == "" and tags(process) == ["one"]
    process.wait_passes()
    assert run("loadvm one") == ""
    process.wait_passes()


def test_ram_is_the_same_when_its_snapshot_goes_away(process: Process, tmp_path: Path) -> None:
    run = process.mon.run
    run("savevm one")
    run("savevm two")
    run("loadvm one")
    run("stop")
    sums = []
    for number, command in enumerate(("info status", "delvm one", "savevm one", "loadvm two", "loadvm one")):
        assert "rror" not in run(command)
        run(f'pmemsave 0 0x1000000 "{tmp_path}/ram{number}"')
        sums.append((tmp_path / f"ram{number}").read_bytes())
    assert sums[0] == sums[1] == sums[2] == sums[4]


def test_a_new_process_goes_on_where_the_snapshot_was(process: Process, tmp_path: Path, floppy: Path) -> None:
    process.mon.run("savevm ready")
    process.mon.send("quit")
    assert process.wait() == 0
    for name in ("a", "b"):
        done = subprocess.run(["qemu-img", "check", tmp_path / f"{name}.qcow2"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    more = ("-loadvm", "ready")
    with machine(tmp_path, floppy, tmp_path / "a.qcow2", tmp_path / "b.qcow2", more=more) as second:
        second.wait_passes()
        assert second.mon.run("info status") == "VM status: running"
    with machine(tmp_path, floppy, tmp_path / "a.qcow2", more=("-loadvm", "nope")) as third:
        assert third.wait() == 1
        assert "Snapshot 'nope' does not exist in one or more devices" in third.stderr


def test_a_paused_machine_stays_paused(process: Process) -> None:
    run = process.mon.run
    run("stop")
    assert run("savevm one") == "" and run("info status") == "VM status: paused"
    assert run("loadvm one") == "" and run("info status") == "VM status: paused"
    run("cont")
    process.wait_passes()


def test_mistakes_change_nothing(process: Process, tmp_path: Path, floppy: Path) -> None:
    run = process.mon.run
    assert run("loadvm nope") == "Error: Snapshot 'nope' does not exist in one or more devices"
    assert run("delvm nope") == ""
    assert run("loadvm").splitlines()[0] == "loadvm: string expected"
    run("savevm one")
    process.mon.send("quit")
    process.wait()
    disks = (tmp_path / "a.qcow2", tmp_path / "b.qcow2")
    with machine(tmp_path, floppy, *disks, more=("-m", "32")) as bigger:
        bigger.wait_passes()
        answer = bigger.mon.run("loadvm one")
        assert answer == "Error: Snapshot 'one': ram is 16777216 in the saved machine, 33554432 in this one"
        bigger.wait_passes()
        assert bigger.mon.run("info status") == "VM status: running"


def test_raw_images_cannot_and_say_what_helps(tmp_path: Path, floppy: Path) -> None:
    raw = tmp_path / "disk.img"
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", raw, "1M"], check=True)
    with machine(tmp_path, floppy, more=("-drive", f"file={raw},format=raw")) as process:
        answer = process.mon.run("savevm x")
        assert answer.startswith("Error: Device 'ide0-hd0' is writable but does not support snapshots")
        assert f"qemu-img convert -O qcow2 {raw}" in answer
        assert process.mon.run("info snapshots") == "no block device can store vmstate for snapshot"


def test_a_snapshot_of_qemu_is_listed_and_deleted_but_not_loaded(tmp_path: Path, floppy: Path) -> None:
    disk = qcow2(tmp_path / "a.qcow2")
    subprocess.run(
        ["qemu-system-x86_64", "-accel", "tcg", "-m", "16", "-display", "none", "-monitor", "stdio", "-hda", disk],
        input=b"savevm foreign\nquit\n", check=True, capture_output=True,
    )  # fmt: skip
    with machine(tmp_path, floppy, disk) as process:
        process.wait_passes()
        assert tags(process) == ["foreign"]
        answer = process.mon.run("loadvm foreign")
        assert answer == "Error: Snapshot 'foreign' was not made by this program: its machine cannot be loaded"
        process.wait_passes()
        assert process.mon.run("delvm foreign") == ""
        assert process.mon.run("info snapshots") == "There is no snapshot available."
    check(disk)


def test_only_snapshots_on_all_disks_can_be_loaded(tmp_path: Path, floppy: Path) -> None:
    disks = (qcow2(tmp_path / "a.qcow2"), qcow2(tmp_path / "b.qcow2"))
    subprocess.run(["qemu-img", "snapshot", "-c", "half", disks[1]], check=True)
    with machine(tmp_path, floppy, *disks) as process:
        process.wait_passes()
        listed = process.mon.run("info snapshots").splitlines()
        assert listed[:3] == ["List of snapshots present on all disks:", "None", ""]
        assert listed[3] == "List of partial (non-loadable) snapshots on 'ide0-hd1':"
        assert process.mon.run("loadvm half") == "Error: Snapshot 'half' does not exist in one or more devices"


@pytest.mark.boot
@pytest.mark.parametrize("options", [("-o", "cluster_size=512"), ("-o", "cluster_size=2M"), ("-o", "compat=0.10")])
def test_every_layout_gives_the_same(tmp_path: Path, floppy: Path, options: tuple[str, ...]) -> None:
    """Small clusters are read instead of mapped."""
    disk = qcow2(tmp_path / "a.qcow2", *options)
    with machine(tmp_path, floppy, disk) as process:
        process.wait_passes()
        assert process.mon.run("savevm one") == ""
        process.wait_passes()
        for _ in range(3):
            assert process.mon.run("loadvm one") == ""
            process.wait_passes()
    check(disk)


def test_what_a_killed_savevm_left_is_loaded_by_its_date(tmp_path: Path, floppy: Path) -> None:
    """The old snapshot of the name is gone from the first disk, and there still on the second."""
    a, b = qcow2(tmp_path / "a.qcow2"), qcow2(tmp_path / "b.qcow2")
    with machine(tmp_path, floppy, a, b) as process:
        process.wait_passes(1)
        assert process.mon.run("savevm x") == ""
        process.mon.send("quit")
        assert process.wait() == 0
    with opened(a) as first, opened(b) as second:
        second.write(0, b"later" + bytes(507))
        old = first.snapshots()[0]
        first.vmstate_begin()
        size = -(-old.vm_state_size // 65536) * 65536
        first.vmstate_share(old, 0, 0, (16 << 20) + size)  # RAM begins at 16 MiB
        for image, state_size in ((second, 0), (first, old.vm_state_size)):
            image.snapshot_create("x", old.date_sec + 1, 0, old.vm_clock_nsec, state_size)
        first.snapshot_delete(old.id)
        second.write(0, b"much later" + bytes(502))
    with machine(tmp_path, floppy, a, b, more=("-loadvm", "x")) as process:
        process.wait_passes(1)
        process.mon.send("quit")
        assert process.wait() == 0
    with opened(b) as second:
        assert read(second, 0, 5) == b"later"


@contextmanager
def cut_short(image: Path) -> Iterator[None]:
    """The image loses its end, and gets it back."""
    data = image.read_bytes()
    image.chmod(0o600)
    with image.open("r+b") as file:
        file.truncate(1 << 18)
        yield
        file.seek(0)
        file.write(data)


def wait_for_state(run: Callable[[str], str], state: str) -> None:
    deadline = time.monotonic() + 10 * SCALE
    while state not in run("info status"):
        assert time.monotonic() < deadline
        time.sleep(0.01)  # the monitor is not to keep the guest from running


def test_a_page_that_cannot_be_read_stops_the_machine_until_it_can(process: Process, tmp_path: Path) -> None:
    """The image loses its end, where RAM lies, and gets it back."""
    run, image = process.mon.run, tmp_path / "a.qcow2"
    run("savevm one")
    run("savevm two")
    run("stop")
    assert run("loadvm one") == ""
    with cut_short(image):
        run("cont")
        wait_for_state(run, "io-error")
        assert "a.qcow2' failed: Input/output error" in process.stderr and "lost" not in process.stderr
    run("cont")
    process.wait_passes()
    assert run("info status") == "VM status: running"


def test_what_was_written_to_memory_goes_with_the_end_of_the_file(process: Process, tmp_path: Path) -> None:
    """The kernel drops it, so that the machine cannot go on as it was; the snapshot can be loaded again."""
    run, image = process.mon.run, tmp_path / "a.qcow2"
    run("savevm one")
    run("savevm two")
    assert run("loadvm one") == ""
    process.wait_passes()
    run("stop")
    with cut_short(image):
        run("cont")
        wait_for_state(run, "internal-error")
        assert "pages are lost" in process.stderr
    assert run("loadvm one") == ""
    run("cont")
    process.wait_passes()
    assert run("info status") == "VM status: running"


def test_a_further_snapshot_shares_what_did_not_change(tmp_path: Path, floppy: Path) -> None:
    """With memory that stands still, the second snapshot's RAM is the first one's clusters, and each lives alone."""
    disk = qcow2(tmp_path / "a.qcow2")
    with machine(tmp_path, floppy, disk) as process:
        process.wait_passes()
        run = process.mon.run
        run("stop")
        assert run("savevm one") == ""
        before = disk.stat().st_blocks * 512
        for tag in ("two", "three"):
            assert run(f"savevm {tag}") == ""
        assert disk.stat().st_blocks * 512 - before < 1 << 20 <= before
        assert run("delvm one") == "" and run("loadvm three") == "" and run("delvm three") == ""
        run("cont")
        process.wait_passes()
        assert run("loadvm two") == ""
        process.wait_passes()
        process.mon.send("quit")
        assert process.wait() == 0
    done = subprocess.run(["qemu-img", "check", disk], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_a_snapshot_took_is_counted(tmp_path: Path) -> None:
    """By a guest that writes memory and disk, and by one that stands."""

    def work() -> list[int]:
        return [int(n) for n in re.findall(r"\b\d+(?= (?:pages|clusters|disk))", run("info snapshot-work"))]

    disk = busy.create(tmp_path / "a.qcow2")
    with busy.machine(tmp_path, counting_guest(tmp_path, "busy"), disk) as process:
        run = process.mon.run
        process.wait_passes()
        assert run("info snapshot-work") == ""
        assert run("savevm one") == ""
        written, clusters, stood, shared = work()
        assert 0 <= stood <= written and 0 <= clusters * 16 - written < 16 and clusters and not shared
        process.wait_passes()
        assert run("loadvm one") == ""
        restored, changed = work()[4:]
        assert 0 < restored < written and changed > 0
        run("stop")
        assert run("loadvm one") == "" and run("loadvm one") == "" and work()[4:] == [0, 0]
        assert run("savevm two") == ""
        assert work()[0] == 0 and written - stood <= work()[3] <= written, "some were written twice"
        assert run("loadvm one") == "" and "loadvm: memory replaced, 0 disk clusters" in run("info snapshot-work")


def test_a_damaged_state_is_refused_and_the_machine_runs_on(process: Process, tmp_path: Path) -> None:
    """Bits flipped in what describes the machine; the seed is fixed, the damage is undone each time."""
    run, image = process.mon.run, tmp_path / "a.qcow2"
    run("savevm one")
    data = image.read_bytes()
    head = data.index(b"QEMUPYVM")
    end = data.index(b"cpu.0", head)
    rng = random.Random(5)
    with image.open("r+b") as file:
        for _ in range(20):
            at = rng.randrange(head, end)
            file.seek(at)
            file.write(bytes([data[at] ^ 1 << rng.randrange(8)]))
            file.flush()
            assert run("loadvm one").startswith("Error: Snapshot 'one'")
            file.seek(at)
            file.write(data[at : at + 1])
            file.flush()
    process.wait_passes()
    assert run("info status") == "VM status: running" and run("loadvm one") == ""
    process.wait_passes()


def slowest_answer(process: Process) -> float:
    """Seconds, of twenty, while all memory is saved; nothing is saved afterwards."""
    process.mon.send("savevm one")
    worst = 0.0
    for _ in range(20):
        begin = time.monotonic()
        process.other.run("info status")
        worst = max(worst, time.monotonic() - begin)
        assert process.other.run("stop") in ("", "Error: 'stop' is not possible while 'savevm' is running")
    process.mon.until_prompt()
    process.other.run("cont")
    assert process.mon.run("delvm one") == ""
    return worst


def test_monitors_answer_while_a_snapshot_is_saved(process: Process) -> None:
    """The median of five: the host may have been busy elsewhere once or twice."""
    assert median(slowest_answer(process) for _ in range(5)) < 0.05 * SCALE
    process.wait_passes()
