//! Milliseconds as people read them.

use std::fmt;

/// Displays milliseconds for people: `0.53 ms`, `11.2 ms`, `84.0 us`.
pub(crate) struct Ms(pub f64);

impl fmt::Display for Ms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.abs() {
            ms if ms >= 100.0 => write!(f, "{:.0} ms", self.0),
            ms if ms >= 10.0 => write!(f, "{:.1} ms", self.0),
            ms if ms >= 0.1 => write!(f, "{:.2} ms", self.0),
            _ => write!(f, "{:.1} us", self.0 * 1e3),
        }
    }
}
