//! Numbers, durations and sizes as people read them, in every sentence alike. (In a configuration they are
//! written `2m` and `20GiB`.)

use std::fmt;
use std::time::Duration;

/// A number with about three significant digits: `46`, `2.1`, `0.032`, `1520`.
pub fn figure(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 0.1 => 2,
        _ => 4,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// `1 file`, `4 files`.
pub fn counted(count: usize, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}

/// A duration in seconds: `40 ms`, `3.2 s`, `12 min 5 s`, `2 min`, `2 h`, `3 d 4 h`.
pub fn seconds(value: f64) -> String {
    match value {
        v if v < 0.0995 => format!("{} ms", figure((v * 1e3).round())),
        v if v < 119.5 => format!("{} s", figure((v * 10.0).round() / 10.0)),
        v if v < 7_199.5 => two_units(v.round() as u64, (60, "min", "s")),
        v if v < 172_770.0 => two_units((v / 60.0).round() as u64, (60, "h", "min")),
        v => two_units((v / 3600.0).round() as u64, (24, "d", "h")),
    }
}

/// `2 h 5 min`; of whole ones the larger unit alone.
fn two_units(count: u64, (of, large, small): (u64, &str, &str)) -> String {
    match count % of {
        0 => format!("{} {large}", count / of),
        rest => format!("{} {large} {rest} {small}", count / of),
    }
}

/// A number of bytes in binary units, as budgets are written: `512 B`, `14.2 MiB`, `20 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let power = (count.ilog2() / 10).min(4);
    format!("{} {}", figure(count as f64 / f64::powi(1024.0, power.cast_signed())), UNITS[power as usize - 1])
}

/// A duration in a sentence: as [`seconds`], and in milliseconds below a second, in which what a window may
/// cost is set.
#[derive(Clone, Copy, Debug)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs_f64() {
            s if s < 0.9995 => write!(f, "{:.0} ms", s * 1e3),
            s => f.write_str(&seconds(s)),
        }
    }
}

/// The same of a duration that a sentence says is not exceeded: rounded up.
#[derive(Clone, Copy, Debug)]
pub struct AtMost(pub Duration);

impl fmt::Display for AtMost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_s = if self.0.as_secs_f64() < 0.9995 { 1e3 } else { 10.0 };
        // A float's own error is no millisecond.
        Span(Duration::from_secs_f64((self.0.as_secs_f64() * per_s - 1e-6).ceil().max(0.0) / per_s)).fmt(f)
    }
}

/// A number of bytes in a sentence, as [`bytes`].
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_with_three_digits_and_durations_in_two_units() {
        for (value, text) in [(0.0123, "12 ms"), (0.4, "0.4 s"), (4.2, "4.2 s"), (725.0, "12 min 5 s")] {
            assert_eq!(seconds(value), text);
        }
        for (value, text) in [
            (120.0, "2 min"),
            (7_199.4, "119 min 59 s"),
            (7_200.0, "2 h"),
            (7_530.0, "2 h 6 min"),
            (172_700.0, "47 h 58 min"),
            (172_790.0, "2 d"),
            (187_200.0, "2 d 4 h"),
        ] {
            assert_eq!(seconds(value), text);
        }
        let spans = [5, 999, 1_000, 9_500, 64_000, 540_000, 86_400_000];
        let spans = spans.map(|ms| Span(Duration::from_millis(ms)).to_string());
        assert_eq!(spans, ["5 ms", "999 ms", "1 s", "9.5 s", "64 s", "9 min", "24 h"]);
    }

    #[test]
    fn what_is_not_exceeded_is_rounded_up() {
        let of = |ms: f64| AtMost(Duration::from_secs_f64(ms / 1e3)).to_string();
        assert_eq!([0.0, 0.2, 341.0, 341.2, 999.0].map(of), ["0 ms", "1 ms", "341 ms", "342 ms", "999 ms"]);
        assert_eq!([1_000.0, 1_001.0, 1_912.8].map(of), ["1 s", "1.1 s", "2 s"]);
    }

    #[test]
    fn sizes_are_in_the_units_of_budgets() {
        let sizes = [12, 1 << 10, 6_180_000, 20 << 30, 3 << 40].map(bytes);
        assert_eq!(sizes, ["12 B", "1 KiB", "5.89 MiB", "20 GiB", "3 TiB"]);
    }
}
