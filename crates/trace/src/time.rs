//! Instants as integer nanoseconds. They become seconds only where they are serialised or displayed.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An instant: nanoseconds since the Unix epoch, UTC. Serialises as epoch seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(i64);

impl Time {
    /// The instant `nanos` nanoseconds after the Unix epoch.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// The instant `seconds` after the Unix epoch, rounded to the nearest microsecond, which is about
    /// the precision of an `f64` for the present epoch; what is beyond the range of times is at its end.
    pub fn from_epoch_s(seconds: f64) -> Self {
        Self(((seconds * 1e6).round() as i64).saturating_mul(1_000))
    }

    /// Nanoseconds since the Unix epoch.
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// Seconds since the Unix epoch.
    pub fn epoch_s(self) -> f64 {
        (self.0 / 1_000) as f64 / 1e6
    }

    /// The time since `earlier`; zero when this is before it, which happens when a clock jumps back.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Whether `span` or more has passed since `earlier`. Unlike [`Self::since`] it needs no division,
    /// so it is cheap enough to be called for every line of a log.
    pub const fn is_past(self, earlier: Self, span: Duration) -> bool {
        self.0.saturating_sub(earlier.0) as i128 >= span.as_nanos() as i128
    }

    /// For programs, to the millisecond: `2026-11-24T03:48:41.900Z`.
    pub fn rfc3339(self) -> String {
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(t) => format!("{t:.3}"),
            Err(_) => format!("{}ns", self.0),
        }
    }

    /// The same moment by a clock that was set by so many nanoseconds since.
    pub const fn shifted(self, by_ns: i64) -> Self {
        Self(self.0.saturating_add(by_ns))
    }

    /// Shifts each of these times.
    pub fn shift_all<'a>(times: impl IntoIterator<Item = &'a mut Self>, by_ns: i64) {
        times.into_iter().for_each(|time| *time = time.shifted(by_ns));
    }

    /// Signed difference in seconds, negative when this is before `other`.
    pub fn signed_s_since(self, other: Self) -> f64 {
        self.0.saturating_sub(other.0) as f64 / 1e9
    }
}

impl Add<Duration> for Time {
    type Output = Self;
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for Time {
    type Output = Self;
    fn sub(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)))
    }
}

/// For people: `2026-11-24 03:48:41.9 UTC`; `{:.3}` has as many places of the second.
impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (jiff::Timestamp::from_nanosecond(i128::from(self.0)), f.precision()) {
            (Ok(t), None | Some(1)) => write!(f, "{}", t.strftime("%Y-%m-%d %H:%M:%S%.1f UTC")),
            (Ok(t), Some(_)) => write!(f, "{}", t.strftime("%Y-%m-%d %H:%M:%S%.3f UTC")),
            (Err(_), _) => write!(f, "{}ns", self.0),
        }
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_f64(self.epoch_s())
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        f64::deserialize(d).map(Self::from_epoch_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epoch_seconds_survive_a_round_trip_to_the_microsecond() {
        let t = Time::from_epoch_s(1_795_492_121.330_7);
        assert_eq!(t.nanos(), 1_795_492_121_330_700_000);
        assert_eq!(t.epoch_s(), 1_795_492_121.330_7);
    }

    #[test]
    fn people_and_programs_read_times_in_their_own_format() {
        let t = Time::from_epoch_s(1_795_492_121.925);
        assert_eq!(t.to_string(), "2026-11-24 03:48:41.9 UTC");
        assert_eq!(format!("{t:.3}"), "2026-11-24 03:48:41.925 UTC");
        assert_eq!(t.rfc3339(), "2026-11-24T03:48:41.925Z");
    }

    #[test]
    fn seconds_beyond_the_range_of_times_are_at_its_end() {
        assert_eq!(Time::from_epoch_s(1e13).nanos(), i64::MAX);
        assert_eq!(Time::from_epoch_s(-1e300).nanos(), i64::MIN);
        assert_eq!(Time::from_epoch_s(f64::NAN).nanos(), 0);
    }

    #[test]
    fn a_clock_that_jumps_back_gives_zero_not_a_panic() {
        let t = Time::from_nanos(5);
        assert_eq!(t.since(Time::from_nanos(9)), Duration::ZERO);
    }
}
