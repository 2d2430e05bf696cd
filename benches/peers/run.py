#!/usr/bin/env python3
"""Lifeboat beside the backup programs that are installed, on the same data in the same run.

Steps are interleaved (A B A B, every other repetition in reverse), disk caches are warm, every restored folder is compared with its
source byte by byte (a wrong restore voids the figure), and the table shows medians. See benches/README.md.
"""
import argparse
import datetime
import fcntl
import json
import mmap
import os
import pathlib
import platform
import shutil
import signal
import stat
import statistics
import subprocess
import sys
import tempfile
import time

import compare
import dataset
import listing
import live
import tools
import years

HERE = pathlib.Path(__file__).resolve().parent
SCENARIOS = {
    "files": "a stopped PostgreSQL data folder: first backup, second after a scattered change of 1 %, no change, verify, restore",
    "postgres": "running servers: full backup, no change, the same change of 1 %, restore, restore over an older folder, drill",
    "stream": "the continuous log beside pgbench at full load",
    "attachments": "100,000 small attachments: first backup, no change, restore",
    "years": "a backup on each of 100 days, then: retention and collection, all stored bytes verified, restore",
    "copy": "a snapshot into a second repository, beside a restore and a backup at the same time",
    "listing": "1,000 snapshots listed from S3 with 50 ms of latency",
    "start": "how long `--version` takes",
}
# These need a server that is installed.
SERVERS = ("files", "postgres", "stream", "copy")
NO_POSTGRES = ("PostgreSQL is not installed, and the `files` scenario needs a real data folder. On Debian or Ubuntu:\n"
               "    sudo apt-get install --no-install-recommends postgresql-15      (or any later version)\n"
               "or leave it out: scripts/bench --only attachments,start")


def say(message):
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def measured(command, log):
    """Runs one command under measure.py; its figures, with `exit`."""
    read_end, write_end = os.pipe()
    environment = dict(os.environ, LC_ALL="C.UTF-8", **{key: str(value) for key, value in command.env.items()})
    # The shell moves the pipe to descriptor 3; the rest are closed.
    wrapped = ["bash", "-c", f'exec 3>&{write_end} "$@"', "bash", sys.executable, HERE / "measure.py", *command.argv]
    with open(log, "ab") as output:
        child = subprocess.Popen([str(part) for part in wrapped], env=environment, cwd=command.cwd, stdout=output, stderr=output,
                                 stdin=subprocess.DEVNULL, pass_fds=[write_end], start_new_session=True)
    os.close(write_end)
    try:
        with os.fdopen(read_end) as pipe:
            told = pipe.read()
        child.wait()
    except BaseException:
        # Interrupted: the tool must not go on working in a folder that the next run uses.
        os.killpg(child.pid, signal.SIGKILL)
        raise
    return json.loads(told) if told else {"exit": child.returncode or 1, "wall_s": 0.0}


def touch_memory():
    """Writes to each free page once. A virtual machine gets its memory from the host when it first touches it, which costs whoever happens to be first
    (up to twice the processor time of a restore was seen) and would be taken for the program's."""
    with open("/proc/meminfo", encoding="ascii") as told:
        free = next(int(line.split()[1]) for line in told if line.startswith("MemFree:")) * 1024
    child = os.fork()
    if child == 0:
        # In a process of its own, that gives everything back.
        pages = mmap.mmap(-1, max(free - (256 << 20), mmap.PAGESIZE))
        for at in range(0, len(pages), mmap.PAGESIZE):
            pages[at] = 1
        os._exit(0)
    os.waitpid(child, 0)


def bytes_below(folder):
    """Bytes and number of regular files."""
    sizes = [info.st_size for info in compare.walk(folder).values() if stat.S_ISREG(info.st_mode)]
    return sum(sizes), len(sizes)


class Scenario:
    """One data set and its steps, run by every tool."""

    def __init__(self, name, title, sources, steps, page_size, entrants, options, scratch):
        self.name, self.title, self.sources, self.steps = name, title, sources, steps
        self.page_size, self.entrants, self.options, self.scratch = page_size, entrants, options, scratch
        self.figures = {}  # (step, tool) -> list of records
        self.failures = []
        self.bytes, self.files = bytes_below(sources[0])

    def run(self):
        for tool in self.entrants:
            self.log(tool).unlink(missing_ok=True)
        for repetition in range(self.options.reps):
            out = set()
            places = {}
            for tool in self.entrants:
                places[tool.name] = tools.Place(self.scratch / f"{self.name}-{tool.name}", self.options.jobs, self.page_size)
                try:
                    self.prepare(tool, places[tool.name])
                except RuntimeError as failure:
                    self.fail(tool, "init", str(failure), out)
            order = self.entrants if repetition % 2 == 0 else self.entrants[::-1]
            for step in self.steps:
                for tool in order:
                    if tool.name not in out and step in tool.steps:
                        self.run_step(tool, places[tool.name], step, out)
            for place in places.values():
                shutil.rmtree(place.root, ignore_errors=True)

    def prepare(self, tool, place):
        shutil.rmtree(place.root, ignore_errors=True)
        place.state.mkdir(parents=True)
        for command in tool.init(place, self.sources[0]):
            if measured(command, self.log(tool))["exit"]:
                raise RuntimeError("setting up a repository failed")

    def log(self, tool):
        return self.scratch / f"{self.name}-{tool.name}.log"

    def fail(self, tool, step, why, out):
        self.failures.append(f"{self.name}, {tool.name}, {step}: {why} (see {self.log(tool)})")
        say(f"FAILED {self.failures[-1]}")
        out.add(tool.name)

    def run_step(self, tool, place, step, out):
        last, target = self.sources[-1], place.root / "restored"
        before = bytes_below(place.repository)[0] if place.repository.exists() else 0
        if step == "restore":
            target.mkdir(mode=0o700)
            command = tool.restore_from(last, target) if isinstance(tool, tools.Copy) else tool.restore(place, target)
        elif step == "verify":
            command = tool.verify(place)
        else:
            command = tool.backup(place, self.sources[0] if step == "first" else last, step == "first")
        figures = measured(command, self.log(tool))
        if figures["exit"]:
            self.fail(tool, step, f"exit status {figures['exit']}", out)
            return
        if step == "restore":
            wrong = compare.differences(last, target, tool.ignored, tool.strict)
            shutil.rmtree(target)
            if wrong:
                self.fail(tool, step, "WRONG RESTORE: " + "; ".join(wrong), out)
                return
        after, files = bytes_below(place.repository)
        figures.update(repository_bytes=after, repository_files=files, added_bytes=after - before)
        self.figures.setdefault((step, tool.name), []).append(figures)
        say(f"{self.name}: {step}: {tool.name}: {figures['wall_s']:.2f} s")

    def middle(self, step, name):
        """The repetition with the median wall time (the faster of two), or None."""
        runs = sorted(self.figures.get((step, name), []), key=lambda run: run["wall_s"])
        return runs[(len(runs) - 1) // 2] if runs else None

    def best(self, step, name):
        """The shortest wall time: what is left when others disturb the machine."""
        return min((run["wall_s"] for run in self.figures.get((step, name), [])), default=None)

    def table(self):
        rows = [["step", "tool", "wall s", "MB/s", "peer ÷ lifeboat", "of the bests", "CPU s", "peak PSS MiB", "peak RSS MiB", "repository + MB",
                 "all walls s"]]
        for step in self.steps:
            ours = self.middle(step, "lifeboat")
            for tool in self.entrants:
                run = self.middle(step, tool.name)
                if run is None:
                    continue
                ratio = best = ""
                if ours is not None and tool.name != "lifeboat":
                    ratio = f"{run['wall_s'] / ours['wall_s']:.2f}"
                    best = f"{self.best(step, tool.name) / self.best(step, 'lifeboat'):.2f}"
                cpu = run["user_s"] + run["sys_s"]
                # Much more CPU time on the machine than the tool's own: somebody else was at work, so distrust the wall time.
                noisy = " (!)" if run["machine_cpu_s"] > 1.3 * cpu + 0.5 else ""
                stored = f"{run['added_bytes'] / 1e6:.1f}" if step not in ("verify", "restore") else ""
                walls = " ".join(f"{each['wall_s']:.2f}" for each in self.figures[(step, tool.name)])
                rows.append([step, tool.name, f"{run['wall_s']:.2f}", f"{self.bytes / 1e6 / run['wall_s']:.0f}", ratio, best,
                             f"{cpu:.1f}{noisy}", f"{run['peak_pss_mib']:.0f}", f"{run['peak_rss_mib']:.0f}", stored, walls])
        return f"### {self.title}\n{self.bytes / 1e6:.0f} MB in {self.files:,} files; median of {self.options.reps}.\n\n{markdown(rows)}"

    def records(self):
        return [{"scenario": self.name, "step": step, "tool": tool, "runs": runs} for (step, tool), runs in self.figures.items()]


def markdown(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def start_up(entrants, count=40):
    """Median and greatest milliseconds from spawning `--version` to its end."""
    rows, records = [["tool", "median ms", "slowest ms"]], []
    silence = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
    for tool in entrants:
        walls = []
        for _ in range(count):
            begun = time.perf_counter()
            child = os.posix_spawn(tool.program, [tool.program, *tool.version_arguments], os.environ, file_actions=silence)
            os.waitpid(child, 0)
            walls.append(1000 * (time.perf_counter() - begun))
        rows.append([tool.name, f"{statistics.median(walls):.1f}", f"{max(walls):.1f}"])
        records.append({"scenario": "start", "tool": tool.name, "median_ms": statistics.median(walls), "runs": walls})
    return f"### Start-up (`--version`, {count} times)\n\n{markdown(rows)}", records


def goals(scenarios, records):
    """The project's own goals against this run, as lines `met`, `missed` or `not measured`."""
    found = {scenario.name: scenario for scenario in scenarios if hasattr(scenario, "middle")}

    def ratio(scenario, step, peer, value):
        runs = [found[scenario].middle(step, name) for name in (peer, "lifeboat")] if scenario in found else [None, None]
        return value(runs[0]) / max(value(runs[1]), 1e-9) if all(runs) else None

    def copied(step):
        return found["copy"].middle(step, "lifeboat") if "copy" in found else None

    wall, added, repository = (lambda run: run["wall_s"]), (lambda run: run["added_bytes"]), (lambda run: run["repository_bytes"])
    memory = [run["peak_pss_mib"] for scenario in found.values() for (step, name), runs in scenario.figures.items()
              if name.startswith("lifeboat") and step not in ("no change", "verify", "drill", "overlapped", "cold", "warm") for run in runs]
    streams = [record for record in records if record["scenario"] == "stream" and record["tool"] == "lifeboat" and record["lag_greatest_s"]]
    full, delta = (found["postgres"].middle(step, "lifeboat") if "postgres" in found else None for step in ("restore", "delta"))
    start = [record["median_ms"] for record in records if record["scenario"] == "start" and record["tool"] == "lifeboat"]
    rows = [
        ("first backup at least 1.3 times as fast as rustic", ratio("files", "first", "rustic", wall), 1.3),
        ("first repository no larger than rustic's (peer ÷ lifeboat)", ratio("files", "first", "rustic", repository), 1.0),
        ("second backup stores no more than pgBackRest block-incremental (peer ÷ lifeboat)",
         ratio("files", "second", "pgbackrest", added), 1.0),
        ("restore at least 1.2 times as fast as rustic", ratio("files", "restore", "rustic", wall), 1.2),
        ("attachments: first backup within 1.2 times rustic's time (peer ÷ lifeboat)",
         ratio("attachments", "first", "rustic", wall), 1 / 1.2),
        ("attachments: backup without change within 1.2 times rustic's time (peer ÷ lifeboat)",
         ratio("attachments", "no change", "rustic", wall), 1 / 1.2),
        ("peak memory of backup and restore, 256 MiB ÷ lifeboat's", 256 / max(memory) if memory else None, 1.0),
        ("postgres: full backup at least 1.3 times as fast as pgBackRest", ratio("postgres", "full", "pgbackrest", wall), 1.3),
        ("postgres: full backup faster than pg_basebackup", ratio("postgres", "full", "pg_basebackup", wall), 1.0),
        ("postgres: repository no larger than pgBackRest's (peer ÷ lifeboat)", ratio("postgres", "full", "pgbackrest", repository), 1.0),
        ("postgres: incremental at least 1.5 times as fast as pgBackRest", ratio("postgres", "incremental", "pgbackrest", wall), 1.5),
        ("postgres: incremental stores no more than pgBackRest (peer ÷ lifeboat)", ratio("postgres", "incremental", "pgbackrest", added), 1.0),
        ("postgres: restore at least 1.2 times as fast as pgBackRest", ratio("postgres", "restore", "pgbackrest", wall), 1.2),
        ("postgres: delta restore at least twice as fast as a full one", wall(full) / wall(delta) if full and delta else None, 2.0),
        ("postgres: drill faster than a scripted one with pgBackRest", ratio("postgres", "drill", "pgbackrest", wall), 1.0),
        ("stream: 15 % of a core ÷ lifeboat's", 15 / max(record["cpu_percent"] for record in streams) if streams else None, 1.0),
        ("stream: 2 s ÷ greatest lag of the newest moment", 2 / max(record["lag_greatest_s"] for record in streams) if streams else None, 1.0),
        ("years: prune faster than rustic's", ratio("years", "prune", "rustic", wall), 1.0),
        ("years: prune faster than restic's", ratio("years", "prune", "restic", wall), 1.0),
        ("years: verification of all bytes at least as fast as rustic's", ratio("years", "verify", "rustic", wall), 1.0),
        ("copy: at least 80 % as fast as a restore and a backup at the same time",
         wall(both) / wall(alone) if (alone := copied("copy")) and (both := copied("overlapped")) else None, 0.8),
        ("listing: 1 s ÷ what 1,000 snapshots in S3 take with 50 ms of latency, never seen before", 1 / wall(cold) if (
            cold := found["listing"].middle("cold", "lifeboat") if "listing" in found else None) else None, 1.0),
        ("start-up below 20 ms (20 ms ÷ lifeboat's)", 20 / start[0] if start else None, 1.0),
    ]
    lines = [["goal", "at least", "here", ""]]
    for title, least, value in ((row[0], row[2], row[1]) for row in rows):
        verdict = "not measured" if value is None else "met" if value >= least else "MISSED"
        lines.append([title, f"{least:.2f}", "" if value is None else f"{value:.2f}", verdict])
    return f"### Goals\n\n{markdown(lines)}"


def machine():
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    memory = int(open("/proc/meminfo").readline().split()[1]) // (1 << 20)
    return f"{os.cpu_count()} × {model}, {memory} GiB, Linux {platform.release()}, load {os.getloadavg()[0]:.1f}"


def revision():
    done = subprocess.run(["git", "-C", HERE, "describe", "--always", "--dirty"], text=True, capture_output=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="scenarios:\n" + "\n".join(f"  {name:12} {what}" for name, what in SCENARIOS.items()))
    parser.add_argument("--quick", action="store_true", help="a tenth of the data, one repetition")
    parser.add_argument("--only", help="these scenarios, comma-separated")
    parser.add_argument("--tools", help="these programs, comma-separated (default: all that are installed): "
                        + ", ".join(tool.name for tool in tools.ALL))
    parser.add_argument("--reps", type=int, help="repetitions; the table shows the median (default 3; 1 with --quick)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="threads for programs that can be told (default: all cores)")
    parser.add_argument("--scale", type=float, help="size of the data, 1 is 1.6 GB of PostgreSQL and 100,000 attachments")
    parser.add_argument("--seconds", type=int, default=60, help="how long pgbench runs in the `stream` scenario (default 60)")
    parser.add_argument("--days", type=int, help="how many days the `years` scenario has (default 100; 20 with --quick)")
    parser.add_argument("--snapshots", type=int, default=1000, help="how many the `listing` scenario has (default 1000)")
    parser.add_argument("--latency", type=int, default=50, help="its milliseconds to the store and back (default 50)")
    parser.add_argument("--prepare", action="store_true", help="make the data and stop")
    parser.add_argument("--kept", action="store_true", help="use the history of `years` and the snapshots of `listing` although another build made them")
    parser.add_argument("--work", type=pathlib.Path, help="scratch folder, about 10 GB at scale 1 (default: $BENCH_WORK, else "
                        "lifeboat-bench in the temporary folder)",
                        default=os.environ.get("BENCH_WORK", os.path.join(tempfile.gettempdir(), "lifeboat-bench")))
    options = parser.parse_args()
    options.work = pathlib.Path(options.work).resolve()
    options.scale = options.scale or (0.1 if options.quick else 1.0)
    options.days = options.days or (20 if options.quick else 100)
    options.reps = options.reps or (1 if options.quick else 3)
    options.only = options.only.split(",") if options.only else list(SCENARIOS)
    if unknown := set(options.only) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(unknown)}")
    return options, parser


def main():
    options, parser = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for folder in ("bin", "run", "results"):
        (options.work / folder).mkdir(parents=True, exist_ok=True)
    # PostgreSQL runs as another user and must be able to enter.
    os.chmod(options.work, 0o755)
    lock = open(options.work / "lock", "w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another benchmark is running in {options.work}; two at once would measure each other")

    wanted = options.tools.split(",") if options.tools else [tool.name for tool in tools.ALL]
    if unknown := set(wanted) - {tool.name for tool in tools.ALL}:
        parser.error(f"no such program: {', '.join(unknown)}")
    entrants = [tool(options.work / "bin") for tool in tools.ALL if tool.name in wanted]
    for tool in entrants:
        say(f"{tool.name}: {tool.missing or f'{tool.version} ({tool.program})'}")
    entrants = [tool for tool in entrants if not tool.missing]

    scenarios = []
    if "files" in options.only:
        folders = dataset.build_postgres(options.work, options.scale, say)
        if folders is None:
            sys.exit(NO_POSTGRES)
        scenarios.append(Scenario("files", "PostgreSQL data folder, stopped, `files` source with `page_size = 8192`", folders,
                                  ["first", "second", "no change", "verify", "restore"], 8192, entrants, options, options.work / "run"))
    if set(options.only) & set(SERVERS) and dataset.postgres_bin() is None:
        sys.exit(NO_POSTGRES)
    if "postgres" in options.only:
        base, _ = dataset.build_postgres(options.work, options.scale, say, day=False)
        rows = dataset.build_day_rows(options.work, options.scale, say)
        scenarios.append(live.LiveScenario(base, rows, entrants, options, options.work / "run", measured, markdown, say))
    if "stream" in options.only and (ours := [tool for tool in entrants if tool.name == "lifeboat"]):
        scenarios.append(live.StreamScenario(ours[0], options, options.work / "run", markdown, say))
    if "attachments" in options.only:
        folder = dataset.build_attachments(options.work, options.scale, say)
        able = [tool for tool in entrants if not isinstance(tool, tools.PgBackRest)]
        scenarios.append(Scenario("attachments", "Small attachments, `files` source", [folder], ["first", "no change", "restore"], 0, able,
                                  options, options.work / "run"))
    if "years" in options.only:
        able = [tool for tool in entrants if isinstance(tool, (tools.Lifeboat, tools.Rustic, tools.Restic))]
        scenarios.append(years.YearsScenario(able, options, options.work / "run", measured, markdown, say))
        if options.prepare:
            scenarios[-1].prepare()
    if "copy" in options.only and (ours := [tool for tool in entrants if tool.name == "lifeboat"]):
        base, _ = dataset.build_postgres(options.work, options.scale, say, day=False)
        scenarios.append(years.CopyScenario(base, ours, options, options.work / "run", measured, markdown, say))
    if "listing" in options.only and (ours := [tool for tool in entrants if tool.name == "lifeboat"]):
        if listing.weed() is None:
            sys.exit("the `listing` scenario needs an S3 server: scripts/install-test-tools")
        scenarios.append(listing.ListingScenario(ours, options, options.work / "run", measured, markdown, say))
        if options.prepare:
            scenarios[-1].prepare()
    if options.prepare:
        return

    touch_memory()
    stopped = None
    for scenario in scenarios:
        try:
            scenario.run()
        except KeyboardInterrupt:
            # What was measured until then is shown all the same.
            stopped = f"{scenario.name}: interrupted"
            break
    sections, records = [scenario.table() for scenario in scenarios], [record for each in scenarios for record in each.records()]
    if "start" in options.only:
        table, more = start_up([tool for tool in entrants if not isinstance(tool, tools.Copy)])
        sections.append(table)
        records += more
    if any(tool.name == "lifeboat" for tool in entrants):
        sections.append(goals(scenarios, records))
    failures = [failure for scenario in scenarios for failure in scenario.failures] + ([stopped] if stopped else [])

    versions = ", ".join(f"{tool.name} {tool.version}" for tool in entrants)
    now = datetime.datetime.now(datetime.timezone.utc)
    print(f"## scripts/bench {' '.join(sys.argv[1:])}\n{now:%Y-%m-%d %H:%M} UTC; {machine()}; scale {options.scale:g}; lifeboat at "
          f"{revision()}\n{versions}\n")
    print("\n\n".join(sections))
    print("\npeer ÷ lifeboat: above 1, lifeboat is faster (medians; then the shortest of each). MB/s: bytes of the source by wall time. (!): others used the machine meanwhile.")
    for failure in failures:
        print(f"FAILED: {failure}")
    results = options.work / "results" / f"{now:%Y%m%d-%H%M%S}.json"
    results.write_text(json.dumps({"machine": machine(), "scale": options.scale, "revision": revision(), "versions": versions,
                                   "records": records, "failures": failures}, indent=1), encoding="utf-8")
    say(f"all figures: {results}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
