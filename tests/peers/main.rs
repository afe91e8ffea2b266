//! Tests beside programs, crates and recordings of others: a real nsys, Prometheus, Alertmanager, DuckDB and
//! Chromium, the crates whose work we do ourselves, and the recordings beside the repository. Where
//! one is missing, its tests say `SKIPPED: ...` and pass.
#![allow(clippy::unwrap_used)]

#[path = "../it/support/mod.rs"]
#[allow(dead_code)]
mod support;

mod alertmanager;
mod beside;
mod captures;
mod duckdb;
mod linemux;
mod nsys;
mod prometheus;
mod prometheus_parse;
mod recordings;
mod report_page;
mod shipped_rules;
mod status_page;
mod tune;
