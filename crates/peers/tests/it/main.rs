//! Our readers of logs and of metrics pages beside linemux and prometheus-parse.
#![allow(clippy::unwrap_used)]

mod linemux;
mod prometheus_parse;
