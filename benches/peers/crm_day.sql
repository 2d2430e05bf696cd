-- psql -v day=1, with CRM_ROWS naming the folder of that day's rows: one day of work. 1 % of the rows of each table, picked by a hash of
-- the id and so scattered over the whole table, are updated; then 1 % is appended.
\set ON_ERROR_STOP on
\set today '((id*2654435761 % 4294967296) >> 16) % 100 = ' :day
UPDATE accounts     SET revenue = revenue + 10, description = description || ' updated' WHERE :today;
UPDATE contacts     SET phone = reverse(phone) WHERE :today;
UPDATE activities   SET body = body || ' [edited on day ' || :day || ' ' || md5(id::text) || ']' WHERE :today;
UPDATE orders       SET stage = 'won', amount = amount * 1.05 WHERE :today;
UPDATE call_records SET cost = cost + 0.01 WHERE :today;
-- Replaced by other incompressible bytes: a chain of SHA-256.
UPDATE attachments a SET data = (SELECT string_agg(sha256((a.id || '/' || :day || '/' || g)::bytea), ''::bytea)
                                 FROM generate_series(1, 1200) g) WHERE :today;
\copy accounts from program 'cat "$CRM_ROWS/accounts.tsv"'
\copy contacts from program 'cat "$CRM_ROWS/contacts.tsv"'
\copy activities from program 'cat "$CRM_ROWS/activities.tsv"'
\copy orders from program 'cat "$CRM_ROWS/orders.tsv"'
\copy call_records from program 'cat "$CRM_ROWS/call_records.tsv"'
\copy attachments from program 'cat "$CRM_ROWS/attachments.tsv"'
CHECKPOINT;
