#!/bin/sh
# Boot a guest once, then run each job from the same fresh state. Results come over the serial line.
#   ten-jobs.sh DISK.qcow2 QEMUPY-OPTIONS...
# The guest must come to a shell prompt on its serial console; PROMPT names it (default "guest# ").
set -eu
disk=$1
shift
work=$(mktemp -d)
trap 'kill $machine 2>/dev/null || true; rm -rf "$work"' EXIT
mkfifo "$work/monitor.in" "$work/monitor.out" "$work/serial.in" "$work/serial.out"

"${QEMUPY:-qemupy}" "$@" -display none -drive "file=$disk,format=qcow2" \
    -serial "pipe:$work/serial" -monitor "pipe:$work/monitor" &
machine=$!
exec 3>"$work/monitor.in" 4<"$work/monitor.out" 5>"$work/serial.in" 6<"$work/serial.out"

# Reads descriptor $1 until its last bytes are $2; prints what came before.
until_text() {
    python3 -c 'import os, sys
descriptor, end, got = int(sys.argv[1]), sys.argv[2].encode(), b""
while not got.endswith(end):
    byte = os.read(descriptor, 1)
    if not byte:
        sys.exit("the machine has ended")
    got += byte
sys.stdout.buffer.write(got[: -len(end)])' "$1" "$2"
}

# One monitor command; back when it has ended.
monitor() {
    echo "$1" >&3
    until_text 4 "(qemu) " >/dev/null
}

until_text 4 "(qemu) " >/dev/null
until_text 6 "${PROMPT:-guest# }" >/dev/null
monitor "savevm ready"
job=1
while [ $job -le 10 ]; do
    monitor "loadvm ready"
    # What this job does: here, count the files earlier jobs left behind (none: each starts afresh), and leave one.
    echo "echo job $job: \$(ls /tmp/left* 2>/dev/null | wc -l) before; touch /tmp/left$job; echo do''ne" >&5
    until_text 6 "done" | tr -d '\r' | sed -n "s/.*\(job $job: [0-9]* before\)$/\1/p"
    job=$((job + 1))
done
echo quit >&3
wait $machine
