//! READS the world: files, sockets, clocks. Changes nothing.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod artifact;
pub mod replay;
pub mod server;
pub mod trace;
