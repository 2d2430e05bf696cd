//! `lifeboat demo`.
pub mod crm;
