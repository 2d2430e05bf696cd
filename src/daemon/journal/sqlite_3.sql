-- Version 3: the snapshot that a run is about to commit, named leases, nodes, and an index for every question that is asked of
-- millions of runs. Released: never edited.
ALTER TABLE runs ADD COLUMN announced TEXT;
ALTER TABLE runs ADD COLUMN place TEXT;

-- (plan, started_ms) is the history of a plan; (plan, job, state, started_ms) the newest of each kind; runs_by_time of version 1 all of them.
DROP INDEX runs_by_plan;
DROP INDEX runs_running;
CREATE INDEX runs_running ON runs (started_ms, id) WHERE state = 'running';
CREATE INDEX runs_of_plan ON runs (plan, started_ms);
CREATE INDEX runs_of_job ON runs (plan, job, state, started_ms);

CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    until_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE nodes (
    name TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    place TEXT NOT NULL,
    labels TEXT NOT NULL,
    host TEXT NOT NULL,
    seen_ms INTEGER NOT NULL
) STRICT;
