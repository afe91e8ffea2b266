//! Text from outside, made safe to show: the traces' own function, for their reports need it too.

pub use skewtrap_trace::printable::{LIMIT, is_printable, printable, printable_bytes};
