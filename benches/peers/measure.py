#!/usr/bin/env python3
"""measure.py COMMAND...: runs it and writes one JSON line to file descriptor 3.

`wall_s`; `user_s` and `sys_s` of the whole process tree; `machine_cpu_s`: every non-idle CPU second of the machine meanwhile, so what
others did at the same time shows; `peak_pss_mib`: peak of the summed proportional set size of the tree, sampled every 50 ms;
`peak_rss_mib`: largest resident set of a single process; `sync_s`: how long a `sync` right afterwards takes, that is, what the
command left unwritten. Disk caches are warm; a `sync` comes first. A process of its own, because a child inherits its parent's peak.
"""
import json
import os
import sys
import threading
import time


def machine_cpu_s():
    fields = [int(field) for field in open("/proc/stat").readline().split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:7])) / os.sysconf("SC_CLK_TCK")


def process_tree(root):
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                todo += map(int, open(f"/proc/{pid}/task/{thread}/children").read().split())
        except OSError:
            pass
    return found


def pss_kib(pid):
    try:
        for line in open(f"/proc/{pid}/smaps_rollup"):
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


class PeakPss(threading.Thread):
    def __init__(self, root):
        super().__init__(daemon=True)
        self.root, self.kib, self.done = root, 0, threading.Event()

    def run(self):
        while not self.done.wait(0.2):
            self.kib = max(self.kib, sum(map(pss_kib, process_tree(self.root))))


def main(command):
    os.sync()
    cpu_before, begun = machine_cpu_s(), time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            os.closerange(3, 256)
            os.execvp(command[0], command)
        finally:
            os._exit(127)
    peak = PeakPss(child)
    peak.start()
    _, status, usage = os.wait4(child, 0)
    wall, cpu = time.monotonic() - begun, machine_cpu_s() - cpu_before
    peak.done.set()
    peak.join()
    begun = time.monotonic()
    os.sync()
    result = {
        "exit": os.waitstatus_to_exitcode(status), "wall_s": round(wall, 3), "user_s": round(usage.ru_utime, 2),
        "sys_s": round(usage.ru_stime, 2), "machine_cpu_s": round(cpu, 2), "peak_pss_mib": round(peak.kib / 1024, 1),
        "peak_rss_mib": round(usage.ru_maxrss / 1024, 1), "sync_s": round(time.monotonic() - begun, 3)}
    os.write(3, (json.dumps(result) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
