//! Plan files.
mod findings;
mod load;
pub mod model;
mod raw;
pub mod schedule;
pub mod schema;
pub mod secret;
mod structure;
pub mod units;
mod validate;

pub use findings::PlanErrors;
pub use model::*;
