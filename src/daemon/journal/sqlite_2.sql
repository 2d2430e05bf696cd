-- Version 2: who or what started a run. Released: never edited.
ALTER TABLE runs ADD COLUMN started_by TEXT;
