//! lifeboat.
pub mod cli;
pub mod clock;
pub mod daemon;
pub mod entry;
pub mod error;
pub mod event;
pub mod id;
pub mod ops;
pub mod plan;
pub mod repo;
pub mod source;
pub mod store;
