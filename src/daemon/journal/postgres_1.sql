-- Version 1 of the shared journal: what version 3 of the embedded one has. Released: never edited.
CREATE SCHEMA IF NOT EXISTS lifeboat;
SET LOCAL search_path = lifeboat, pg_catalog;

CREATE TABLE migrations (
    version integer PRIMARY KEY,
    applied timestamptz NOT NULL,
    program text NOT NULL
);

CREATE SEQUENCE fence;

-- Moments are milliseconds since 1970 in UTC. Ids sort by their bytes.
CREATE TABLE runs (
    id text COLLATE "C" PRIMARY KEY,
    plan text COLLATE "C" NOT NULL,
    job text COLLATE "C" NOT NULL,
    trigger text NOT NULL,
    scheduled_ms bigint,
    attempt integer NOT NULL,
    exclusive integer NOT NULL,
    state text COLLATE "C" NOT NULL,
    started_ms bigint NOT NULL,
    ended_ms bigint,
    kind text,
    error text,
    story text,
    phases text,
    warnings text,
    bytes_read bigint,
    bytes_stored bigint,
    snapshot text,
    report text,
    node text NOT NULL,
    owner text NOT NULL,
    host text NOT NULL,
    pid bigint NOT NULL,
    boot_id text NOT NULL,
    start_ticks bigint NOT NULL,
    lease_until_ms bigint,
    fence bigint NOT NULL,
    started_by text,
    announced text,
    place text,
    UNIQUE (plan, job, scheduled_ms)
);
CREATE UNIQUE INDEX runs_live ON runs (plan, job) WHERE state = 'running' AND exclusive = 1;
CREATE INDEX runs_running ON runs (started_ms, id) WHERE state = 'running';
CREATE INDEX runs_of_plan ON runs (plan, started_ms);
CREATE INDEX runs_of_job ON runs (plan, job, state, started_ms);
CREATE INDEX runs_by_time ON runs (started_ms);

CREATE TABLE attempts (
    run text COLLATE "C" NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    attempt integer NOT NULL,
    started_ms bigint NOT NULL,
    ended_ms bigint NOT NULL,
    state text NOT NULL,
    kind text,
    error text,
    story text,
    PRIMARY KEY (run, attempt)
);

CREATE TABLE schedules (
    plan text COLLATE "C" NOT NULL,
    job text COLLATE "C" NOT NULL,
    expression text NOT NULL,
    since_ms bigint NOT NULL,
    PRIMARY KEY (plan, job)
);

CREATE TABLE leases (
    name text PRIMARY KEY,
    holder text NOT NULL,
    until_ms bigint NOT NULL
);

CREATE TABLE nodes (
    name text PRIMARY KEY,
    owner text NOT NULL,
    place text NOT NULL,
    labels text NOT NULL,
    host text NOT NULL,
    seen_ms bigint NOT NULL
);
