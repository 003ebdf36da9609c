"""Run jobs in a guest, each from the same snapshot, over a monitor socket.

    ten_jobs.py MONITOR-SOCKET SERIAL-SOCKET

for a machine started with `-monitor unix:...,server=on -serial unix:...,server=on`, a qcow2 disk, and a shell prompt.
"""

import socket
import sys


def connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


def until(connection: socket.socket, end: bytes) -> str:
    got = b""
    while not got.endswith(end):
        chunk = connection.recv(1)
        if not chunk:
            raise SystemExit("the machine has ended")
        got += chunk
    return got.decode(errors="replace")


def main() -> None:
    monitor, serial = connect(sys.argv[1]), connect(sys.argv[2])

    def command(line: str) -> None:
        monitor.sendall(line.encode() + b"\n")
        until(monitor, b"(qemu) ")

    until(monitor, b"(qemu) ")
    serial.sendall(b"\n")
    until(serial, b"guest# ")
    command("savevm ready")
    for job in range(1, 11):
        command("loadvm ready")
        # The quotes keep the echo of what is typed from matching.
        serial.sendall(f"echo job {job}: $((6 * {job})) do''ne\n".encode())
        print(until(serial, b"done").splitlines()[-1].removesuffix(" done"))
    monitor.sendall(b"quit\n")


if __name__ == "__main__":
    main()
