//! lifeboat: backup and disaster recovery that keeps proving that recovery works.
//!
//! ```text
//! source ──bytes──▶ chunk ──new ones──▶ frame (compress, seal) ──▶ pack ──▶ store      backup
//! target ◀─bytes── chunk ◀─────────── frame (open, decompress) ◀── pack ◀── store      restore, drill
//!
//! plan files ─▶ plan ─▶ daemon (scheduler) ─▶ run ─▶ operation ─▶ journal, reports
//! ```
//!
//! | module | owns |
//! |---|---|
//! | [`id`], [`error`], [`event`], [`clock`], [`entry`] | the vocabulary that all share |
//! | [`store`] | an object store behind our few verbs: open by URL, conditional create, retry, limits |
//! | [`repo`] | the repository: format, keys, packs, index, trees, manifests, reading, writing, verification |
//! | [`source`] | where data comes from, one folder a kind: consistent snapshots, and proof that a restore is right |
//! | [`plan`] | plan files: parse, validate, schedule, secrets |
//! | [`ops`] | backup, restore, drill, verify, doctor: one readable procedure each |
//! | [`daemon`] | scheduler, journal, status |
//! | [`web`] | the HTTP API, its OpenAPI document, metrics |
//! | [`cli`] | arguments, one file a command, rendering, progress |
//!
//! Imports go down only: `cli → web → daemon → ops → {repo, source, plan}`, `repo → store`, `plan → source` (for what a check expects).
//! `repo` and `source` do not know each other: they meet in `ops` through a byte stream and entries. `tests/layers.rs` holds this.
//!
//! A backup commits in this order: packs, index, manifest. The manifest is the commit; anything before it is only garbage that the
//! next run finds and reuses. The byte format is in `docs/format.md`, the reasons in `docs/decisions/`.

pub mod cli;
pub mod clock;
pub mod daemon;
pub mod entry;
pub mod error;
pub mod event;
pub mod id;
pub mod ops;
#[doc(hidden)]
pub mod parsers;
pub mod plan;
pub mod repo;
pub mod source;
pub mod store;
pub mod web;
