#!/usr/bin/env python3
"""The daemon under load and faults, and then the proof that everything it promised holds.

`lifeboat serve` with a slot each minute or so, a SQLite database and attachments, a PostgreSQL server whose log is streamed, and a
command, all written to all the time; an S3 server; copies in a second repository; a webhook. At random moments the daemon, programs
that it started, commands beside it, the S3 server and PostgreSQL are killed (SIGKILL), paused, or away for minutes. Afterwards: each
job recovers by itself; every snapshot verifies, restores and is compared row by row with a ledger; random moments of the log too;
journal and repositories agree; every slot was run or is told of; what failed was told to the webhook; no process is left.

Exit 0: all of that holds. 1: a finding (or the soak itself failed). The same seed draws the same faults, though not at the same moment
of each run.
"""
import argparse
import json
import os
import pathlib
import pwd
import random
import shutil
import signal
import sys
import tempfile
import time

import checks as checking
import faults as faulting
import world as worlds

ROOT = pathlib.Path(__file__).resolve().parents[2]


def say(message):
    print(f"{time.strftime('%H:%M:%S')} {message}", flush=True)


def unprivileged(folder):
    """PostgreSQL does not run as root: then all of it runs as `postgres`."""
    if os.getuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)


def soak(world, faults, checks, minutes):
    world.start_weed()
    for repository in ("main", "second"):
        world.call("repo", "init", repository)
    world.start_load()
    faults.start_daemon()
    began, end = worlds.now(), time.monotonic() + minutes * 60
    # What the first slots make is there before anything is broken.
    faults.rest(minutes * 15, 130, 130)
    while (left := end - time.monotonic()) > 0:
        faults.once(left)
        faults.rest(end - time.monotonic(), 2, 30)
    say("faults are over")
    world.webhook.sick_until = 0
    since = worlds.now()
    if not world.daemon.alive():
        checks.found(f"the daemon ended by itself: {world.daemon.process.returncode}")
        faults.start_daemon()
    checks.recovered(since, 900)
    world.stop_load()
    rows = {name: len(ledger.acknowledged) for name, ledger in world.ledgers.items()}
    checks.figures["rows written"] = rows
    if min(rows.values()) < minutes * 10:
        checks.found(f"the load was too small to prove anything: {rows}")
    checks.log_arrived(world.ledgers["pg"].acknowledged[-1])
    say("stopping the daemon")
    ended = worlds.now()
    memory = pathlib.Path(f"/proc/{world.daemon.process.pid}/status").read_text()
    checks.figures["peak of the last daemon, MiB"] = int(memory.split("VmHWM:")[1].split()[0]) // 1024
    world.daemon.signal(signal.SIGTERM)
    faults.ended()
    left = worlds.of_lifeboat(world)
    if left:
        checks.found(f"processes are left: {left}")
    say("checking everything")
    checks.everything(began, ended)
    left = worlds.of_lifeboat(world)
    if left:
        checks.found(f"processes are left after the restores: {left}")
    work = world.state / "work"
    # Locks and what streams say of themselves are files; what a run works in is a folder.
    rest = [str(path) for path in work.glob("*/*") if path.is_dir()]
    if rest:
        checks.found(f"the state folder keeps what runs left: {rest}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="how long faults go on (60); the checks come on top of it")
    parser.add_argument("--seed", type=int, default=None, help="what draws the faults; else a new one")
    parser.add_argument("--keep", action="store_true", help="keep the folder with everything, also when all is well")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**9)
    tools = pathlib.Path(os.environ.get("LIFEBOAT_TEST_TOOLS", ROOT / ".cache/tools"))
    lifeboat = pathlib.Path(os.environ.get("LIFEBOAT", ROOT / "target/release/lifeboat"))
    for needed in (tools / "bin/weed", lifeboat):
        if not needed.exists():
            sys.exit(f"{needed} is missing: scripts/install-test-tools, cargo build --release")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="lbsoak-", dir="/tmp"))
    unprivileged(folder)
    say(f"seed {seed}, {arguments.minutes:g} minutes, {folder}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    world = checks = None
    try:
        world = worlds.World(folder, seed, lifeboat, tools, say)
        faults = faulting.Faults(world, random.Random(seed), say)
        checks = checking.Checks(world, faults, say)
        soak(world, faults, checks, arguments.minutes)
        checks.figures["faults"] = faults.counts
    finally:
        if world is not None:
            end(world)
    print(json.dumps({"seed": seed, "minutes": arguments.minutes, "findings": checks.findings, **checks.figures}, indent=1))
    if checks.findings or arguments.keep:
        say(f"kept: {folder}")
    else:
        shutil.rmtree(folder)
    say(f"{len(checks.findings)} findings" if checks.findings else "no finding")
    return 1 if checks.findings else 0


def end(world):
    """Nothing that the soak started outlives it."""
    for writer in world.writers:
        writer.over.set()
    world.daemon.kill()
    for pid in worlds.of_lifeboat(world):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    postmaster = world.postmaster()
    # The file outlives a server that was killed, and its number may be another's by now.
    if str(world.data) in worlds.processes().get(postmaster, (0, ""))[1]:
        os.kill(postmaster, signal.SIGQUIT)
    world.weed.kill()


if __name__ == "__main__":
    sys.exit(main())
