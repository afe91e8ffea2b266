//! CHANGES the world: windows, bundles, state, notifications. The only code that can hurt a server.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod notify;
