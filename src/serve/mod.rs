//! The agent's HTTP API, its own metrics and the status page.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]
