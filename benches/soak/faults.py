"""What happens to the machine: kills, pauses and outages, drawn by the seed."""
import os
import signal
import subprocess
import time

import world as worlds


class Faults:
    def __init__(self, world, random, say):
        self.world, self.random, self.say = world, random, say
        self.counts = {}
        # Intervals in which the daemon could see to its work: [from, until], the last one open.
        self.up = []
        self.long_outage_done = False
        # When the store was away for long: [from, until].
        self.outages = []

    # The daemon

    def start_daemon(self):
        self.world.daemon.start()
        self.up.append([worlds.now(), None])

    def down(self):
        if self.up and self.up[-1][1] is None:
            self.up[-1][1] = worlds.now()

    def count(self, what):
        self.counts[what] = self.counts.get(what, 0) + 1
        self.say(what)

    def once(self, left):
        """One fault, and what mends it. `left`: seconds until faults are over."""
        kinds = [(self.kill_daemon, 5), (self.kill_child, 5), (self.kill_store, 3), (self.kill_postgres, 3), (self.pause_daemon, 2),
                 (self.stop_daemon, 2), (self.kill_command, 3), (self.sick_webhook, 2)]
        if not self.long_outage_done and left > 460:
            kinds.append((self.long_outage, 2))
        faults, weights = zip(*kinds)
        self.random.choices(faults, weights)[0](left)

    def rest(self, left, shortest, longest):
        time.sleep(max(0.0, min(self.random.uniform(shortest, longest), left)))

    def kill_daemon(self, left):
        # Now and then for so long that slots are missed.
        away = self.random.choice([0, 0, 1, 5, 20, 150]) if left > 250 else 1
        self.count("daemon killed")
        self.world.daemon.kill()
        self.down()
        time.sleep(away)
        self.start_daemon()

    def stop_daemon(self, _left):
        self.count("daemon stopped")
        self.world.daemon.signal(signal.SIGTERM)
        self.ended()
        self.start_daemon()

    def ended(self):
        """Waits for a daemon that was told to end; how it ended counts."""
        status = self.world.daemon.process.wait(timeout=180)
        self.down()
        if status != 0:
            raise RuntimeError(f"the daemon was told to stop and ended with {status}: see {self.world.daemon.log}")

    def pause_daemon(self, left):
        self.count("daemon paused")
        self.world.daemon.signal(signal.SIGSTOP)
        self.down()
        self.rest(left, 2, 40)
        self.world.daemon.signal(signal.SIGCONT)
        self.up.append([worlds.now(), None])

    def kill_child(self, left):
        """A program that the daemon started, if one comes within seconds: of a dump or of a drill's server."""
        end = time.monotonic() + min(left, 20)
        while time.monotonic() < end:
            daemon = self.world.daemon.process.pid
            children = sorted(pid for pid in worlds.of_lifeboat(self.world) if pid != daemon)
            if children:
                victim = self.random.choice(children)
                try:
                    line = worlds.processes().get(victim, (0, "?"))[1]
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                self.count(f"child killed: {line.split('/')[-1].split()[0] if line.strip() else '?'}")
                return
            time.sleep(0.2)

    def kill_store(self, left):
        self.count("store killed")
        self.world.weed.kill()
        self.rest(left, 0, 45)
        self.world.start_weed()

    def long_outage(self, _left):
        self.long_outage_done = True
        # Longer than the objectives of four minutes, and the time in which somebody is to be told.
        self.count("store away for seven minutes")
        self.world.weed.kill()
        since = worlds.now()
        time.sleep(420)
        self.outages.append((since, worlds.now()))
        self.world.start_weed()

    def kill_postgres(self, left):
        postmaster = self.world.postmaster()
        if postmaster is None:
            raise RuntimeError("PostgreSQL is not there")
        self.count("PostgreSQL killed")
        os.kill(postmaster, signal.SIGKILL)
        self.rest(left, 0, 30)
        self.world.start_postgres()

    def kill_command(self, _left):
        """A command by hand beside the daemon, killed in the middle."""
        # Of a job that has a schedule: nothing else makes good what is interrupted here.
        plan, word = self.random.choice(sorted(key for key in self.world.schedules if key[1] in ("backup", "drill", "verify")))
        job = ["drill", "run", plan] if word == "drill" else [word, plan]
        self.count(f"command killed: {job[0]}")
        argv = [self.world.lifeboat, "--plans", self.world.plans, "--state", self.world.state, "--progress", "none", *job]
        child = subprocess.Popen([str(part) for part in argv], env=self.world.environment, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(self.random.uniform(0.2, 6))
        child.kill()
        child.wait()

    def sick_webhook(self, left):
        self.count("webhook sick")
        self.world.webhook.sick_until = time.monotonic() + min(self.random.uniform(5, 60), left)
