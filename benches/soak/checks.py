"""Whether everything holds that the daemon promised. Each function adds what it finds wrong to `findings`; nothing here changes the repositories."""
import datetime
import shutil
import sqlite3
import subprocess
import time

import world as worlds
from world import moment

SECOND = datetime.timedelta(seconds=1)
# A failure is told within this, unless it is over again: what stands is judged each 15 s, messages are paced by 30 s and more.
TOLD = 150 * SECOND
# As what a run that failed, and an objective that is missed, are told.
OF_RUNS = ("failed", "incomplete", "interrupted", "missed", "drill-failed", "retention-blocked")
OBJECTIVE = ("data-loss-objective",)


def slots_of(schedule, first, last):
    """The minutes of a schedule in [first, last]. Only the forms that the soak's plans use."""
    minutes = schedule.split()[0]
    span, _, step = minutes.partition("/")
    low = 0 if span == "*" else int(span.split("-")[0])
    high = 59 if span == "*" else int(span.split("-")[1])
    at = first.replace(second=0, microsecond=0)
    if at < first:
        at += 60 * SECOND
    while at <= last:
        if at.minute in range(low, high + 1, int(step or 1)):
            yield at
        at += 60 * SECOND


class Checks:
    def __init__(self, world, faults, say):
        self.world, self.faults, self.say = world, faults, say
        self.findings, self.figures = [], {}

    def found(self, what):
        self.say(f"FINDING: {what}")
        self.findings.append(what)

    # After the faults, while the daemon still runs

    def recovered(self, since, seconds):
        """By itself: each job of each plan succeeds once more, and nothing is left to complain of."""
        end, missing, problems = time.monotonic() + seconds, None, None
        while time.monotonic() < end:
            runs = self.world.call("run", "history", "--limit", "400")["runs"]
            fresh = {(run["plan"], run["job"]) for run in runs if run["state"] == "succeeded" and moment(run["started_at"]) >= since}
            missing = sorted(set(self.world.schedules) - fresh)
            status = self.world.call("status")
            problems = [f"{plan['name']}: {problem['kind']}: {problem['message']}" for plan in status["plans"] for problem in plan["problems"]]
            problems += [f"{problem['kind']}: {problem['message']}" for problem in status["problems"]]
            if not missing and not problems and status["daemon"]:
                return
            time.sleep(3)
        self.found(f"after {seconds} s without faults these did not succeed: {missing}; problems: {problems}")

    def log_arrived(self, last):
        """The stream is through with the last row of the ledger."""
        def arrived():
            self.world.sql("select txid_current()")
            ranges = self.world.call("snapshots", "pg")["recovery_ranges"]
            return any(each["continuous"] and moment(each["to"]) > last for each in ranges)
        try:
            self.world.until("the log of the last row", 120, arrived)
        except RuntimeError as error:
            self.found(f"the continuous log did not come: {error}")

    # After the daemon

    def everything(self, began, ended):
        self.journal_file()
        self.log_file()
        self.runs = self.history()
        self.snapshots = {plan: self.world.call("snapshots", plan) for plan in ("crm", "pg", "dump")}
        self.verified()
        self.agreement()
        self.slots(began, ended)
        self.alarms(began, ended)
        self.restores()

    def journal_file(self):
        with sqlite3.connect(self.world.state / "journal.sqlite") as db:
            told = db.execute("pragma integrity_check").fetchall()
        if told != [("ok",)]:
            self.found(f"the journal is damaged: {told}")

    def log_file(self):
        bugs = [line for line in self.world.daemon.log.read_text(errors="replace").splitlines() if "panicked" in line or "report this" in line]
        if bugs:
            self.found(f"the daemon's log tells of {len(bugs)} bugs: {bugs[0][:1000]}")

    def history(self):
        runs = self.world.call("run", "history", "--limit", "0")["runs"]
        states = {}
        for run in runs:
            key = f"{run['job']} {run['state']}"
            states[key] = states.get(key, 0) + 1
            if run["attempt"] > 1:
                run["earlier_attempts"] = self.world.call("run", "show", run["id"])["earlier_attempts"]
                if len(run["earlier_attempts"]) != run["attempt"] - 1:
                    self.found(f"run {run['id']} is at attempt {run['attempt']} and {len(run['earlier_attempts'])} earlier ones are recorded")
            if run["state"] == "running":
                self.found(f"run {run['id']} ({run['job']} of {run['plan']}) is recorded as running, and nothing runs")
            if run["state"] in ("failed", "interrupted") and not (run["error"] or run["story"]):
                self.found(f"run {run['id']} ended {run['state']} and nothing says why")
        self.figures["runs"] = dict(sorted(states.items()))
        self.figures["further attempts"] = sum(run["attempt"] - 1 for run in runs if run["attempt"] > 1)
        return runs

    def verified(self):
        for repository in ("main", "second"):
            report = self.world.call("verify", repository, "--data", "100", expect=(0, 3, 20))
            if report["findings"] or report["skipped"]:
                self.found(f"verify {repository}: {report['findings']} {report['skipped']}")
            self.figures[f"verified in {repository}"] = f"{report['packs']} packs, {len(report['snapshots_sound'])} snapshots"
            if not report["snapshots_sound"]:
                self.found(f"verify {repository} found no sound snapshot")

    def agreement(self):
        """Every run that committed has its snapshot, every snapshot its run; one a slot."""
        of_runs, of_slots = {}, {}
        for run in self.runs:
            if run["job"] == "backup" and run["snapshot"]:
                of_runs.setdefault(run["snapshot"], []).append(run)
                if run["state"] not in ("succeeded", "incomplete"):
                    self.found(f"run {run['id']} is {run['state']} and has the snapshot {run['snapshot']}")
            if run["job"] == "backup" and run["state"] == "succeeded" and not run["snapshot"]:
                self.found(f"run {run['id']} succeeded and has no snapshot")
            if run["scheduled_at"]:
                of_slots.setdefault((run["plan"], run["job"], run["scheduled_at"]), []).append(run["id"])
        for slot, ids in of_slots.items():
            if len(ids) > 1:
                self.found(f"the slot {slot} has several runs: {ids}")
        stored = {each["id"]: plan for plan, listed in self.snapshots.items() for each in listed["snapshots"]}
        for snapshot, plan in stored.items():
            if len(of_runs.get(snapshot, [])) != 1:
                self.found(f"the snapshot {snapshot} of {plan} has {len(of_runs.get(snapshot, []))} runs in the journal")
        pruned = {plan for plan, job in self.world.schedules if job == "prune"}
        for plan in self.snapshots:
            ordered = sorted((run["snapshot"] for runs in of_runs.values() for run in runs if run["plan"] == plan))
            gone = [snapshot for snapshot in ordered if snapshot not in stored]
            kept_for_sure = ordered[-12:] if plan in pruned else ordered
            for snapshot in set(gone) & set(kept_for_sure):
                self.found(f"the journal has the snapshot {snapshot} of {plan}, and the repository does not")
            self.figures[f"snapshots of {plan}"] = f"{len(ordered) - len(gone)} of {len(ordered)} committed"
        for plan, listed in self.snapshots.items():
            if listed["damaged"] or any(each["damaged"] or each["problems"] for each in listed["snapshots"]):
                self.found(f"snapshots of {plan} are damaged or have problems: {listed['damaged']} "
                           f"{[each['id'] for each in listed['snapshots'] if each['damaged'] or each['problems']]}")

    def slots(self, began, ended):
        """Each slot was run, or is named by the run that stands for it."""
        total = 0
        for (plan, job), schedule in self.world.schedules.items():
            own = [run for run in self.runs if (run["plan"], run["job"]) == (plan, job) and run["scheduled_at"]]
            by_slot = {moment(run["scheduled_at"]): run for run in own}
            for slot in by_slot:
                if slot not in set(slots_of(schedule, slot, slot)):
                    self.found(f"a {job} of {plan} ran for {slot}, which is no slot of {schedule}")
            # What is due in the last two minutes may be left to a daemon that does not come again.
            for slot in slots_of(schedule, began, ended - 120 * SECOND):
                total += 1
                if slot in by_slot:
                    continue
                later = min((at for at in by_slot if at > slot), default=None)
                told = later and self.tells_of_missed(by_slot[later])
                if not told:
                    self.found(f"the {job} of {plan} at {slot} was not run, and nothing says so (next: {later})")
        self.figures["slots"] = total

    @staticmethod
    def tells_of_missed(run):
        """Whether a run, in whichever of its attempts, says that it stands for earlier slots."""
        stories = [run["story"], *(attempt["story"] for attempt in run.get("earlier_attempts", []))]
        return any(story and "stands for" in story for story in stories) or run["state"] == "missed"

    def alarms(self, began, ended):
        events = self.world.webhook.events
        if len(events) < 1:
            self.found("the webhook heard nothing")
        self.figures["events told"] = len(events)
        # What failed for good was told, unless it was over before somebody could be told.
        for run in self.runs:
            if run["state"] not in ("failed", "incomplete") or run["trigger"] == "manual" or not run["ended_at"]:
                continue
            same = [other for other in self.runs if (other["plan"], other["job"]) == (run["plan"], run["job"]) and other["ended_at"]]
            end = moment(run["ended_at"])
            after = min((moment(other["ended_at"]) for other in same if other["state"] == "succeeded" and moment(other["ended_at"]) > end),
                        default=ended)
            before = max((moment(other["ended_at"]) for other in same if other["state"] == "succeeded" and moment(other["ended_at"]) < end),
                         default=began)
            if after - end < TOLD or not self.was_up(end, after, TOLD):
                continue
            own = self.told(run["plan"], OF_RUNS, before, after + TOLD, run["job"])
            if not own:
                self.found(f"run {run['id']} ({run['job']} of {run['plan']}) failed at {end} and nobody was told of that job until {after}")
        # An objective that was missed for long was told.
        limit = 240 * SECOND
        for plan in ("crm", "dump"):
            points = sorted(moment(run["started_at"]) for run in self.runs
                            if run["plan"] == plan and run["job"] == "backup" and run["state"] == "succeeded")
            for point, following in zip([began, *points], [*points, ended]):
                missed = point + limit
                if following - missed > TOLD and self.was_up(missed, following, TOLD):
                    if not self.told(plan, OBJECTIVE, point, following + TOLD):
                        self.found(f"{plan} had no backup between {point} and {following}, and nobody was told of its objective")
        # Of a plan with a log only an outage says for sure that nothing came. Before its first backup there is nothing to come back to.
        first = min((moment(run["ended_at"]) for run in self.runs if (run["plan"], run["job"], run["state"]) == ("pg", "backup", "succeeded")), default=ended)
        for since, until in self.faults.outages:
            if first < since and until - since - limit > TOLD and self.was_up(since + limit, until, TOLD) and not self.told("pg", OBJECTIVE, since, until + TOLD):
                self.found(f"the log of pg could not be stored between {since} and {until}, and nobody was told of its objective")
        self.figures["objectives told as missed"] = sum(event["problem"] in OBJECTIVE and event["change"] == "raised" for event in events)

    def told(self, plan, kinds, first, last, job=None):
        """Whether somebody was told of such a problem of this plan (and job), as what it is."""
        return any(event["plan"] == plan and event["problem"] in kinds and (job is None or event["job"] == job) and event["change"] != "over"
                   and first <= event["heard"] <= last for event in self.world.webhook.events)

    def was_up(self, start, end, enough):
        """Whether the daemon lived long enough within an interval, at a stretch."""
        return any(min(until or end, end) - max(since, start) >= enough for since, until in self.faults.up)

    # Restores

    def restores(self):
        took, count = time.monotonic(), 0
        runs = {run["snapshot"]: run for run in self.runs if run["job"] == "backup" and run["snapshot"]}
        for plan, listed in self.snapshots.items():
            for each in listed["snapshots"]:
                run = runs.get(each["id"])
                if run is None:
                    continue
                count += 1
                self.one(plan, f"snapshot {each['id']}", ["--snapshot", each["id"]], moment(run["started_at"]), moment(run["ended_at"]))
        self.moments()
        for plan, listed in self.snapshots.items():
            if (plan, "copy") in self.world.schedules:
                self.copies(plan)
        self.figures["snapshots restored and compared"] = count
        self.figures["restores took"] = f"{time.monotonic() - took:.0f} s"

    def moments(self):
        """Random moments of the log, and its end."""
        ranges = [each for each in self.snapshots["pg"]["recovery_ranges"] if each["continuous"]]
        if len(ranges) != 1:
            self.found(f"the log of pg has {len(ranges)} ranges, not one: {ranges}")
        for each in ranges:
            start, end = moment(each["from"]), moment(each["to"])
            for _ in range(6):
                at = start + (end - start) * self.faults.random.random()
                self.one("pg", f"moment {at}", ["--at", at.isoformat()], at, at)
        acknowledged = self.world.ledgers["pg"].acknowledged
        if acknowledged:
            self.one("pg", "the end of the log", ["--latest"], acknowledged[-1] + SECOND, worlds.now())

    def copies(self, plan):
        """The newest copy: of its own moment, which is one of the plan's."""
        own = {each["id"]: each for each in self.snapshots[plan]["snapshots"]}
        runs = {run["snapshot"]: run for run in self.runs if run["job"] == "backup" and run["snapshot"]}
        newest = max((moment(run["started_at"]) for run in self.runs
                      if (run["plan"], run["job"], run["state"]) == (plan, "copy", "succeeded")), default=None)
        if newest is None:
            self.found(f"no copy of {plan} succeeded")
            return
        # At least what was there when the last copy that succeeded began.
        had = [runs[snapshot] for snapshot in own if snapshot in runs and moment(runs[snapshot]["ended_at"]) < newest]
        start = max((moment(run["started_at"]) for run in had), default=newest)
        self.one(plan, "newest copy", ["--repository", "second", "--latest"], start, worlds.now(), expect=(0, 3))

    def one(self, plan, what, which, start, end, expect=(0,)):
        """Restores to a new place and compares all of it with the ledgers as of a moment in [start, end]."""
        target = self.world.restored / "target"
        try:
            self.world.call("restore", plan, *which, "--to", target, "--yes", expect=expect)
            wrong = list(getattr(self, f"compare_{plan}")(target, start, end))
        except (RuntimeError, OSError, ValueError, sqlite3.Error, subprocess.TimeoutExpired) as error:
            wrong = [str(error)]
        for each in filter(None, wrong):
            self.found(f"{plan}, {what}: {each}")
        self.remove(target)

    def remove(self, target):
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)

    def compare_crm(self, target, start, end):
        with sqlite3.connect(target / "crm") as db:
            yield None if db.execute("pragma integrity_check").fetchall() == [("ok",)] else "the database is damaged"
            yield self.world.ledgers["crm"].compare(db.execute("select n, body from ledger").fetchall(), start, end)
        files = [(int(path.stem), path.read_text()) for path in (target / "attachments").iterdir()]
        yield self.world.ledgers["attachments"].compare(files, start, end)

    def compare_dump(self, target, start, end):
        *lines, last = target.read_text().splitlines()
        yield None if last == "end" else "the dump has no end"
        rows = [line.split() for line in lines]
        yield self.world.ledgers["dump"].compare([(int(n), text) for n, text in rows], start, end)

    def compare_pg(self, target, start, end):
        socket, log = self.world.folder / "sock2", self.world.folder / "logs/restored"
        socket.mkdir(exist_ok=True)
        control = [self.world.bin / "pg_ctl", "-w", "-t", "120", "-D", target]
        options = f"-k {socket} -p 5432 -c listen_addresses='' -c fsync=off"
        started = subprocess.run([str(part) for part in [*control, "-l", log, "-o", options, "start"]], env=self.world.environment,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if started.returncode:
            yield f"the server does not start: {log.read_text()[-1500:]}"
            return
        try:
            ask = lambda sql: self.world.run([self.world.bin / "psql", "-h", socket, "-U", "postgres", "-XqAt", "-F", " ", "-c", sql, "crm"])
            self.world.until("the end of the recovery", 120, lambda: ask("select pg_is_in_recovery()").strip() == "f")
            rows = [line.split() for line in ask("select n, body from ledger").splitlines()]
            yield self.world.ledgers["pg"].compare([(int(n), text) for n, text in rows], start, end)
            sums = ask("select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)")
            yield None if sums.strip() in ("t", "") else "pgbench's balances and history differ"
        finally:
            subprocess.run([str(part) for part in [*control, "-m", "immediate", "stop"]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
