//! PURE: from kernel rows to a verdict a person can act on, and its renderings to an `impl Write`.
//!
//! [`trace`] is what a reader hands over, [`step`] folds it (with [`period`] where no annotation
//! tells the steps), [`collective`] and [`clock`] match ranks in time, [`evidence`] holds the
//! figures, [`judge`], [`compare`] and [`conclude`] decide, [`table`] is the result, [`report`] writes.

pub mod clock;
pub mod collective;
pub mod compare;
pub mod conclude;
pub mod evidence;
pub mod judge;
pub mod kernel;
pub mod kind;
pub mod message;
pub mod period;
pub mod report;
pub mod step;
pub mod table;
pub mod trace;
pub mod verdict;
