-- The tables of the generated CRM. Attachments are stored out of line and uncompressed, as scanned documents would be.
CREATE TABLE accounts(id bigint PRIMARY KEY, name text NOT NULL, industry text, website text, street text, country char(2),
  revenue numeric(14,2), created_at timestamp, custom jsonb, description text);
CREATE TABLE contacts(id bigint PRIMARY KEY, account_id bigint NOT NULL, name text, email text, phone text, title text,
  created_at timestamp, custom jsonb);
CREATE TABLE activities(id bigint PRIMARY KEY, account_id bigint, contact_id bigint, kind text, subject text, body text, at timestamp,
  owner_id int);
CREATE TABLE orders(id bigint PRIMARY KEY, account_id bigint, at timestamp, stage text, amount numeric(14,2), currency char(3), qty int,
  custom jsonb);
CREATE TABLE call_records(id bigint PRIMARY KEY, contact_id bigint, agent_id int, at timestamp, seconds int, cost numeric(10,4),
  number text, direction text, sentiment double precision);
CREATE TABLE attachments(id bigint PRIMARY KEY, activity_id bigint, filename text, mime text, data bytea);
ALTER TABLE attachments ALTER data SET STORAGE EXTERNAL;
