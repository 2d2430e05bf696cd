-- Version 1. Released: never edited.
CREATE TABLE migrations (
    version INTEGER PRIMARY KEY,
    applied_ms INTEGER NOT NULL,
    program TEXT NOT NULL
) STRICT;

CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    plan TEXT NOT NULL,
    job TEXT NOT NULL,
    trigger TEXT NOT NULL,
    scheduled_ms INTEGER,
    attempt INTEGER NOT NULL,
    exclusive INTEGER NOT NULL,
    state TEXT NOT NULL,
    started_ms INTEGER NOT NULL,
    ended_ms INTEGER,
    kind TEXT,
    error TEXT,
    story TEXT,
    phases TEXT,
    warnings TEXT,
    bytes_read INTEGER,
    bytes_stored INTEGER,
    snapshot TEXT,
    report TEXT,
    node TEXT NOT NULL,
    owner TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    start_ticks INTEGER NOT NULL,
    lease_until_ms INTEGER,
    fence INTEGER NOT NULL,
    UNIQUE (plan, job, scheduled_ms)
) STRICT;
CREATE UNIQUE INDEX runs_live ON runs (plan, job) WHERE state = 'running' AND exclusive = 1;
CREATE INDEX runs_running ON runs (owner) WHERE state = 'running';
CREATE INDEX runs_by_plan ON runs (plan, job, started_ms);
CREATE INDEX runs_by_time ON runs (started_ms);

CREATE TABLE attempts (
    run TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    attempt INTEGER NOT NULL,
    started_ms INTEGER NOT NULL,
    ended_ms INTEGER NOT NULL,
    state TEXT NOT NULL,
    kind TEXT,
    error TEXT,
    story TEXT,
    PRIMARY KEY (run, attempt)
) STRICT;

CREATE TABLE schedules (
    plan TEXT NOT NULL,
    job TEXT NOT NULL,
    expression TEXT NOT NULL,
    since_ms INTEGER NOT NULL,
    PRIMARY KEY (plan, job)
) STRICT;

CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT;
INSERT INTO counters (name, value) VALUES ('fence', 0);
