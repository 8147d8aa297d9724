"""Memory and processor time of other processes. Linux tells both; elsewhere `ps` tells the memory alone."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from bench.http import BenchFailed

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_MUCH = 0.15  # of all cores


def raise_descriptors() -> None:
    """Lets this process, and those it starts from now on, open as many files as the system allows it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def resident_mb(pid: int) -> float:
    """Resident memory in MB of 10^6 bytes, shared pages included. Raises BenchFailed if the process has gone."""
    try:
        if _PROC.exists():
            for line in (_PROC / str(pid) / "smaps_rollup").read_text("ascii").splitlines():
                if line.startswith("Rss:"):
                    return int(line.split()[1]) * 1024 / 1e6
        found = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
        return int(found.stdout) * 1024 / 1e6
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise BenchFailed(f"process {pid} has gone") from error


def processor_seconds(pid: int) -> float | None:
    """Seconds of processor time that it has used; None where the system does not tell."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / _TICKS


def socket_bytes() -> int | None:
    """What the kernel keeps for all TCP sockets of the machine; None where it does not tell."""
    try:
        lines = (_PROC / "net" / "sockstat").read_text("ascii").splitlines()
    except OSError:
        return None
    words = next(line.split() for line in lines if line.startswith("TCP:"))
    return int(words[words.index("mem") + 1]) * os.sysconf("SC_PAGESIZE")


class ProcessorTime:
    """How many cores each process (with its children) used, and this one, since construction."""

    def __init__(self, processes: Mapping[str, int]) -> None:
        self._processes = processes
        self._since = time.perf_counter()
        self._before = self._seconds()

    def used(self) -> dict[str, float]:
        """Cores by name. `client` is this process, `others` what does not belong to the bench."""
        elapsed = time.perf_counter() - self._since
        cores = {name: (seconds - self._before[name]) / elapsed for name, seconds in self._seconds().items()}
        if "others" in cores:
            cores["others"] = max(0.0, 2 * cores["others"] - sum(cores.values()))
        return cores

    def notes(self) -> list[str]:
        """`used` in words, with a warning where others slowed the bench down."""
        cores = self.used()
        notes = [f"cores used: {' · '.join(f'{name} {share:.2f}' for name, share in cores.items())}"]
        if cores.get("others", 0.0) > _MUCH * (os.cpu_count() or 1):
            notes.append("other programs kept the machine busy meanwhile: alone the figures are better")
        return notes

    def _seconds(self) -> dict[str, float]:
        """Seconds by name so far; `others` are those of the whole machine."""
        own = time.process_time()
        if not _PROC.exists():
            return {"client": own}
        names = {pid: name for name, pid in self._processes.items()}
        ticks = dict.fromkeys(self._processes, 0)
        for stat in _PROC.glob("[0-9]*/stat"):
            try:
                # The name in parentheses may hold anything; fields are counted behind it (proc_pid_stat(5)).
                fields = stat.read_text("utf-8", "replace").rpartition(")")[2].split()
            except OSError:
                continue
            pid, parent = int(stat.parent.name), int(fields[1])
            if pid in names:  # with what its ended children had used
                ticks[names[pid]] += sum(map(int, fields[11:15]))
            elif parent in names:
                ticks[names[parent]] += sum(map(int, fields[11:13]))
        # user, nice, system, idle, iowait, irq, softirq, steal (proc_stat(5))
        machine = [int(value) for value in (_PROC / "stat").read_text("ascii").split(maxsplit=9)[1:9]]
        busy = sum(machine) - machine[3] - machine[4]
        return {"client": own} | {name: count / _TICKS for name, count in (ticks | {"others": busy}).items()}
