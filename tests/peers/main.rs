//! Tests beside programs and recordings of others: a real nsys, Prometheus, Alertmanager, DuckDB and Chromium, and the
//! recordings beside the repository. Where one is missing, its tests say `SKIPPED: ...` and pass. The crates whose
//! work we do ourselves are in `crates/peers`.
#![allow(clippy::unwrap_used)]

#[path = "../it/support/mod.rs"]
#[allow(dead_code)]
mod support;

mod alertmanager;
mod beside;
mod captures;
mod duckdb;
mod nsys;
mod prometheus;
mod recordings;
mod report_page;
mod shipped_rules;
mod status_page;
mod tune;
