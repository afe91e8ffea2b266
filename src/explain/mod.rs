//! PURE: kernel rows of several ranks to a verdict, written to an `impl Write`.

pub mod clock;
pub mod collective;
pub mod compare;
pub mod evidence;
pub mod judge;
pub mod kernel;
pub mod period;
pub mod step;
pub mod trace;
pub mod verdict;
