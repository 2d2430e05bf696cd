CREATE INDEX ON contacts(account_id);
CREATE INDEX ON contacts(email);
CREATE INDEX ON activities(account_id, at);
CREATE INDEX ON orders(account_id);
CREATE INDEX ON orders(at);
CREATE INDEX ON call_records(contact_id);
CREATE INDEX ON call_records(at);
CREATE INDEX ON attachments(activity_id);
CREATE EXTENSION IF NOT EXISTS amcheck;
