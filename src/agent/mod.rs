//! The loop: owns clock, tasks and shutdown; carries out what `decide` asks for.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod capture;
pub mod clock;
pub mod command;
pub mod compare;
pub mod merged;
pub mod nsys;
pub mod supervise;
pub mod window;
