//! The loop: owns clock, tasks and shutdown; carries out what `decide` asks for.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod clock;
pub mod compare;
pub mod explained;
pub mod merged;
pub mod supervise;
