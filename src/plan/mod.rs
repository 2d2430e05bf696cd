//! Plan files: what operators write, read and checked before anything else happens.
//!
//! [`Plans::load`] reads all files of a folder together, finds everything that is wrong in one go, each with `file:line:col`, and
//! yields the validated model. Nothing else is opened or asked, and no secret is resolved, until a run needs it.
//!
//! On the way: `load` (files, syntax) → `structure` (keys and types, by the schema derived from `raw`) → `validate` (values,
//! references, rules between keys) → `model`. `schedule`, `units` and `secret` read single values; `show`, `explain` and `schema`
//! render. Apart from `load` and [`SecretRef::resolve`] everything here is pure, and time is a parameter.

mod blackout;
mod explain;
mod findings;
mod load;
mod model;
mod raw;
mod schedule;
mod schema;
mod secret;
mod show;
mod spacing;
mod structure;
mod units;
mod validate;

pub use blackout::{Blackout, JOBS, Window};
pub use explain::{explain_json, explain_text};
pub use findings::PlanErrors;
pub use load::Sound;
pub use model::{
    Address, Cache, Check, Credentials, DamagedPages, Drill, DrillAt, Environment, EnvironmentValue, HeartbeatStyle, JournalSettings, Keep,
    LockMode, LogMode, Method, Missed, Notifier, NotifierKind, ObjectLock, Objectives, Occasion, Plan, PlannedCopy, Plans, Prune,
    Repository, RepositoryUrl, Retry, Scheme, Serve, Server, Share, Source, SourceKind, Verify, WebhookForm,
};
pub use schedule::{Schedule, in_both, jitter_for, parse_timezone};
pub use schema::{schema, schema_text};
pub use secret::{Secret, SecretRef};
pub use show::{check_json, check_text, show_json, show_text, source_text};
pub use units::{format_duration, format_size, parse_duration, parse_percent, parse_rate, parse_size};
