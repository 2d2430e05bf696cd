"""The `years` and `copy` scenarios: what a repository costs that has lived for long.

`years`: a folder with a database (SQLite, 8 KiB pages: a CRM of which a day updates 1 % of the rows, scattered, and appends 0.3 %) and attachments
(20 new ones a day, 5 removed) is backed up by every program on each of `--days` days. Then, each repetition on a copy of that history (hard links:
no program changes a file in place): retention and collection in one command, the same again with nothing to do, all stored bytes verified, and the newest
snapshot restored and compared. Kept are the last 7 days, 4 weekly ones and one of each 30 days, which are tagged, because not every program can be told another time.

`copy`: one snapshot of the PostgreSQL data folder goes to an empty second repository with another key; beside it, at the same time, a restore of
it and a first backup of the same folder: what would have to be done without `copy`, overlapped as well as two processes can be.
"""
import json
import pathlib
import random
import shutil
import sqlite3
import subprocess
import threading

import compare
import crm_rows
import tools

TABLES = ("accounts", "contacts", "activities", "orders")
LAST, WEEKS = 7, 4
OTHER_PASSPHRASE = "benchmark-only-other-passphrase"


def survives(day, days):
    """Whether retention keeps the snapshot of this day for another reason than being one of the last."""
    age = days - 1 - day
    return age % 30 == 29 or age >= LAST and age % 7 == 0 and age < LAST * (WEEKS + 1)


class History:
    """The folder that is backed up, day after day; deterministic."""

    def __init__(self, folder, scale):
        self.folder, self.rng = folder, random.Random(f"{crm_rows.SEED}/years")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.counts = {table: max(100, int(count * 0.08 * scale)) for table, count in crm_rows.TABLES.items()}
        self.attachments, self.next_attachment = [], 0
        self.text = crm_rows.Writer("attachments", "years").words(200_000).encode()
        self.database = sqlite3.connect(folder / "crm.sqlite", isolation_level=None)
        self.database.execute("PRAGMA page_size = 8192")
        self.database.execute("PRAGMA synchronous = OFF")
        self.last = {}
        for table in TABLES:
            rows = crm_rows.rows(table, "base", range(1, self.counts[table] + 1), self.counts)
            first = next(rows)
            columns = ", ".join(f"c{number}" for number in range(1, len(first)))
            self.database.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, {columns})")
            self.database.execute("BEGIN")
            self.insert(table, [first])
            self.insert(table, rows)
            self.database.execute("COMMIT")
            self.last[table] = self.counts[table]
        for table in ("activities", "orders"):
            self.database.execute(f"CREATE INDEX {table}_account ON {table} (c1)")
        self.attach(round(2000 * scale))

    def insert(self, table, rows):
        rows = iter(rows)
        first = next(rows)
        marks = ", ".join("?" * len(first))
        self.database.executemany(f"INSERT INTO {table} VALUES ({marks})", [first])
        self.database.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)

    def attach(self, count):
        for number in range(self.next_attachment, self.next_attachment + count):
            path = self.folder / f"attachments/{number % 40:02d}/scan-{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = int(1024 * 32 ** self.rng.random())
            start = self.rng.randrange(len(self.text) - size)
            path.write_bytes(self.rng.randbytes(size) if number % 2 else self.text[start:start + size])
            self.attachments.append(path)
        self.next_attachment += count

    def day(self, day):
        self.database.execute("BEGIN")
        for table, column in (("accounts", 6), ("contacts", 4), ("activities", 7), ("orders", 3)):
            updated = self.rng.sample(range(1, self.last[table] + 1), max(1, self.last[table] // 100))
            self.database.executemany(f"UPDATE {table} SET c{column} = ? WHERE id = ?", ((f"{self.rng.randrange(10**5)}", row) for row in updated))
            appended = max(1, self.counts[table] * 3 // 1000)
            self.insert(table, crm_rows.rows(table, f"day{day}", range(self.last[table] + 1, self.last[table] + 1 + appended), self.counts))
            self.last[table] += appended
        self.database.execute("COMMIT")
        self.attach(20)
        for _ in range(5):
            self.attachments.pop(self.rng.randrange(len(self.attachments))).unlink()


def lifeboat_plan(place, source, tagged, more=""):
    (place.root / "plans").mkdir(exist_ok=True)
    tags = 'tags = ["keep"]\n' if tagged else ""
    (place.root / "plans/bench.toml").write_text(
        f'version = 1\n\n[repository.main]\nurl = "file://{place.repository}"\npassphrase = {{ env = "LIFEBOAT_PASSPHRASE" }}\n\n'
        f'[source.data]\nkind = "files"\npath = "{source}"\npage_size = 8192\n\n[plan.bench]\nsource = "data"\nrepository = "main"\n'
        f'{tags}keep = {{ last = {LAST}, tags = ["keep"] }}\n{more}', encoding="utf-8")


def backup(tool, place, source, tagged):
    """One day's backup, tagged if it is to survive."""
    tag = ["--tag", "keep"] if tagged else []
    if isinstance(tool, tools.Lifeboat):
        lifeboat_plan(place, source, tagged)
        return tool.command(place, "backup", "bench")
    command = tool.backup(place, source, False)
    return tools.Command([*command.argv, *tag], command.env, command.cwd)


def prune(tool, place):
    """Retention and collection, each program with its own defaults. rustic by default only marks, and deletes a day later: it is told to do it at once."""
    if isinstance(tool, tools.Lifeboat):
        return tool.command(place, "prune", "bench", "--json")
    if isinstance(tool, tools.Rustic):
        return tool.command(place, "forget", "--keep-last", LAST, "--keep-tags", "keep", "--prune", "--instant-delete")
    return tool.command(place, "forget", "-q", "--keep-last", LAST, "--keep-tag", "keep", "--prune")


def sizes_below(folder):
    return {path: info.st_size for path, info in compare.walk(folder).items() if not (folder / path).is_dir()}


def identity(tool):
    """What tells whether the same program is meant."""
    info = pathlib.Path(tool.program).stat()
    return [str(tool.program), tool.version, info.st_size, info.st_mtime_ns]


class Measured:
    """What both scenarios have in common with run.Scenario."""

    def __init__(self, entrants, options, scratch, measured, markdown, say):
        self.entrants, self.options, self.scratch = entrants, options, scratch
        self.measured, self.markdown, self.say = measured, markdown, say
        self.figures, self.failures = {}, []

    def log(self, name):
        return self.scratch / f"{self.name}-{name}.log"

    def fail(self, name, step, why):
        self.failures.append(f"{self.name}, {name}, {step}: {why} (see {self.log(name)})")
        self.say(f"FAILED {self.failures[-1]}")

    def note(self, step, name, figures):
        self.figures.setdefault((step, name), []).append(figures)
        self.say(f"{self.name}: {step}: {name}: {figures['wall_s']:.2f} s")

    def middle(self, step, name):
        runs = sorted(self.figures.get((step, name), []), key=lambda run: run["wall_s"])
        return runs[(len(runs) - 1) // 2] if runs else None

    def best(self, step, name):
        return min((run["wall_s"] for run in self.figures.get((step, name), [])), default=None)

    def records(self):
        return [{"scenario": self.name, "step": step, "tool": tool, "runs": runs} for (step, tool), runs in self.figures.items()]


class YearsScenario(Measured):
    name = "years"
    steps = ("prune", "prune again", "verify", "restore")

    def __init__(self, *more):
        super().__init__(*more)
        self.folder = self.options.work / f"history-{self.options.scale:g}-{self.options.days}"
        self.source = self.folder / "source"
        self.kept = sum(day >= self.options.days - LAST or survives(day, self.options.days) for day in range(self.options.days))

    def place(self, tool):
        return tools.Place(self.folder / tool.name, self.options.jobs, 8192)

    def prepare(self):
        """Makes the history unless it is there; which is so where the same programs made it. Returns the tools that have one."""
        made, marker = {tool.name: identity(tool) for tool in self.entrants}, self.folder / "made.json"
        known = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else None
        if known and (known["programs"] == made or self.options.kept and known["programs"].keys() >= made.keys()):
            self.figures = {("backup", name): runs for name, runs in known["backups"].items()}
            self.say(f"years: the history in {self.folder} is used again")
            return list(self.entrants)
        self.say("years: making the first day")
        history = History(self.source, self.options.scale)
        alive = list(self.entrants)
        for tool in self.entrants:
            place = self.place(tool)
            self.log(tool.name).unlink(missing_ok=True)
            shutil.rmtree(place.root, ignore_errors=True)
            place.state.mkdir(parents=True)
            for command in tool.init(place, self.source):
                if self.measured(command, self.log(tool.name))["exit"]:
                    self.fail(tool.name, "init", "setting up a repository failed")
                    alive.remove(tool)
        for day in range(self.options.days):
            if day:
                history.day(day)
            for tool in list(alive) if day % 2 == 0 else alive[::-1]:
                figures = self.measured(backup(tool, self.place(tool), self.source, survives(day, self.options.days)), self.log(tool.name))
                if figures["exit"]:
                    self.fail(tool.name, f"backup of day {day}", f"exit status {figures['exit']}")
                    alive.remove(tool)
                self.figures.setdefault(("backup", tool.name), []).append(figures)
            if day % 10 == 9:
                self.say(f"years: {day + 1} days")
        history.database.close()
        for tool in alive:
            for folder in (self.place(tool).repository, self.place(tool).state):
                folder.rename(folder.with_suffix(".before"))
        if not self.failures:
            backups = {tool.name: self.figures[("backup", tool.name)] for tool in alive}
            marker.write_text(json.dumps({"programs": made, "backups": backups}), encoding="utf-8")
        return alive

    def run(self):
        alive = self.prepare()
        for repetition in range(self.options.reps):
            for tool in alive:
                place = self.place(tool)
                for folder, how in ((place.repository, "-al"), (place.state, "-a")):
                    shutil.rmtree(folder, ignore_errors=True)
                    subprocess.run(["cp", how, folder.with_suffix(".before"), folder], check=True)
            for step in self.steps:
                for tool in list(alive) if repetition % 2 == 0 else alive[::-1]:
                    if not self.step(tool, self.place(tool), step, self.source):
                        alive.remove(tool)
        for tool in self.entrants:
            for folder in (self.place(tool).repository, self.place(tool).state):
                shutil.rmtree(folder, ignore_errors=True)
        self.bytes = sum(sizes_below(self.source).values())

    def step(self, tool, place, step, source):
        """Whether it went well."""
        target = place.root / "restored"
        before = sizes_below(place.repository)
        if step == "restore":
            target.mkdir(mode=0o700)
            command = tool.restore(place, target)
        else:
            command = tool.verify(place) if step == "verify" else prune(tool, place)
        figures = self.measured(command, self.log(tool.name))
        if figures["exit"]:
            self.fail(tool.name, step, f"exit status {figures['exit']}")
            return False
        if step == "restore":
            wrong = compare.differences(source, target, tool.ignored, tool.strict)
            shutil.rmtree(target)
            if wrong:
                self.fail(tool.name, step, "WRONG RESTORE: " + "; ".join(wrong))
                return False
        after = sizes_below(place.repository)
        figures.update(before_bytes=sum(before.values()), repository_bytes=sum(after.values()), repository_files=len(after),
                       written_bytes=sum(size for path, size in after.items() if path not in before),
                       removed_bytes=sum(size for path, size in before.items() if path not in after))
        self.note(step, tool.name, figures)
        return True

    def table(self):
        rows = [["step", "tool", "wall s", "peer ÷ lifeboat", "of the bests", "CPU s", "peak PSS MiB", "written MB", "removed MB", "repository MB after", "all walls s"]]
        for tool in self.entrants:
            runs = self.figures.get(("backup", tool.name), [])
            total = {key: sum(run[key] for run in runs) for key in ("wall_s", "user_s", "sys_s")}
            first = self.middle("prune", tool.name)
            stored = f"{first['before_bytes'] / 1e6:.1f}" if first else ""
            rows.append([f"{len(runs)} backups", tool.name, f"{total['wall_s']:.1f}", "", "", f"{total['user_s'] + total['sys_s']:.1f}",
                         f"{max((run['peak_pss_mib'] for run in runs), default=0):.0f}", "", "", stored, ""])
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
                noisy = " (!)" if run["machine_cpu_s"] > 1.3 * cpu + 0.5 else ""
                walls = " ".join(f"{each['wall_s']:.2f}" for each in self.figures[(step, tool.name)])
                rows.append([step, tool.name, f"{run['wall_s']:.2f}", ratio, best, f"{cpu:.1f}{noisy}", f"{run['peak_pss_mib']:.0f}",
                             f"{run['written_bytes'] / 1e6:.1f}", f"{run['removed_bytes'] / 1e6:.1f}", f"{run['repository_bytes'] / 1e6:.1f}", walls])
        return (f"### {self.options.days} days\nA database of SQLite with attachments, {self.bytes / 1e6:.0f} MB at the end; {self.kept} snapshots are kept; "
                f"median of {self.options.reps}.\n\n{self.markdown(rows)}")


class CopyScenario(Measured):
    name = "copy"

    def __init__(self, source, entrants, *more):
        super().__init__(entrants, *more)
        self.source = source

    def run(self):
        tool = self.entrants[0]
        self.log(tool.name).unlink(missing_ok=True)
        self.place = place = tools.Place(self.scratch / "copy-lifeboat", self.options.jobs, 8192)
        shutil.rmtree(place.root, ignore_errors=True)
        place.state.mkdir(parents=True)
        other, fresh, target = place.root / "other", place.root / "fresh", place.root / "restored"
        # Three plans: of one source, into one repository, and into an empty one.
        second = (f'[[plan.bench.copy]]\nto = "other"\n[repository.other]\nurl = "file://{other}"\npassphrase = {{ env = "OTHER_PASSPHRASE" }}\n'
                  f'[repository.fresh]\nurl = "file://{fresh}"\npassphrase = {{ env = "OTHER_PASSPHRASE" }}\n[plan.fresh]\nsource = "data"\nrepository = "fresh"\n')
        lifeboat_plan(place, self.source, False, second)
        for command in (["repo", "init", "main"], ["backup", "bench"]):
            if self.measured(self.command(tool, place, *command), self.log(tool.name))["exit"]:
                self.fail(tool.name, " ".join(command), "did not succeed")
                return
        for repetition in range(self.options.reps):
            for folder in (other, fresh, target):
                shutil.rmtree(folder, ignore_errors=True)
            for name in ("other", "fresh"):
                self.measured(self.command(tool, place, "repo", "init", name), self.log(tool.name))
                if repetition > 0:
                    # Another repository at the same place: it is meant.
                    self.measured(self.command(tool, place, "repo", "accept", name), self.log(tool.name))
            for step in ("copy", "overlapped") if repetition % 2 == 0 else ("overlapped", "copy"):
                if step == "copy":
                    found = [self.measured(self.command(tool, place, "copy", "bench", "--to", "other"), self.log(tool.name))]
                else:
                    found = self.both(tool, place, target)
                if any(figures["exit"] for figures in found):
                    self.fail(tool.name, step, f"exit status {[figures['exit'] for figures in found]}")
                    return
                figures = {key: sum(one[key] for one in found) for key in ("user_s", "sys_s", "peak_pss_mib")}
                figures["wall_s"] = max(one["wall_s"] for one in found)
                figures["machine_cpu_s"] = max(one["machine_cpu_s"] for one in found)
                self.note(step, tool.name, figures)
            verified = self.measured(self.command(tool, place, "verify", "other", "--data"), self.log(tool.name))
            wrong = compare.differences(self.source, target, tool.ignored, tool.strict)
            if verified["exit"] or wrong:
                self.fail(tool.name, "check", f"verify of the copy: exit {verified['exit']}; the restore differs in {wrong}")
        shutil.rmtree(place.root)

    def command(self, tool, place, *arguments):
        command = tool.command(place, *arguments)
        command.env["OTHER_PASSPHRASE"] = OTHER_PASSPHRASE
        return command

    def both(self, tool, place, target):
        """A restore and a first backup at the same time."""
        target.mkdir(mode=0o700)
        found = []
        commands = (["restore", "bench", "--latest", "--to", target, "--yes"], ["backup", "fresh"])
        # Each writes a log of its own: two at once.
        threads = [threading.Thread(target=lambda command=command: found.append(
            self.measured(self.command(tool, place, *command), self.log(command[0])))) for command in commands]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found if len(found) == len(commands) else [{"exit": 1}]

    def table(self):
        rows = [["step", "wall s", "CPU s", "peak PSS MiB", "all walls s"]]
        for step in ("copy", "overlapped"):
            if run := self.middle(step, "lifeboat"):
                walls = " ".join(f"{each['wall_s']:.2f}" for each in self.figures[(step, "lifeboat")])
                rows.append([step, f"{run['wall_s']:.2f}", f"{run['user_s'] + run['sys_s']:.1f}", f"{run['peak_pss_mib']:.0f}", walls])
        return ("### Copy of one snapshot, beside a restore and a first backup at the same time\nPostgreSQL data folder, another key; each copy is verified, each restore "
                f"compared; median of {self.options.reps}.\n\n{self.markdown(rows)}")
