//! From the civil time in a log line to an instant.
//!
//! Servers print local time without a zone, most of them whole seconds. The zone is the user's or
//! the machine's. Whether it was right shows when lines arrive: a stamp that differs from its arrival
//! by more than a late arrival could explain is not used.

use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use skewtrap_trace::time::Time;

/// A stamp as it stands in a line: `2026-11-24 03:48:06` and milliseconds where there are any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp<'a> {
    /// `YYYY-MM-DD HH:MM:SS`, or vLLM's `MM-DD HH:MM:SS`.
    pub civil: &'a [u8],
    /// The `.mmm` behind it.
    pub millis: Option<u16>,
}

/// Length of `YYYY-MM-DD HH:MM:SS`.
pub const CIVIL_LEN: usize = 19;
/// Length of `MM-DD HH:MM:SS`.
pub const SHORT_LEN: usize = 14;

/// A live line whose whole-second stamp is this close to its arrival arrived when it was written;
/// the arrival is then the better clock.
const PROMPT: Duration = Duration::from_secs(3);
/// A log that is behind is no more once its steady lag is this much less: one of about three seconds would be told, and
/// taken back, again and again.
const NO_MORE_BEHIND: Duration = Duration::from_secs(2);
/// Whose stamps are as late as this for so long is behind: its clock is, or its log comes late.
const STEADY: Duration = Duration::from_secs(30);
/// Clocks of one machine and a slow tail differ by less than this.
const TOLERATED: Duration = Duration::from_secs(90);

/// Turns stamps into instants; the last second is remembered, because lines come in bursts.
#[derive(Debug)]
pub struct Clock {
    zone: TimeZone,
    last: [u8; CIVIL_LEN],
    last_len: usize,
    last_nanos: i64,
    offset_s: Option<i64>,
    /// Whether its lines are steadily late by more than can be that they are held up.
    is_behind: bool,
    lag: Lag,
}

/// By how much stamps are behind their arrival at least.
#[derive(Clone, Copy, Debug, Default)]
struct Lag {
    /// The least of the stretch under way, in seconds, and when that began.
    now: Option<(Time, f64)>,
    before: Option<f64>,
}

impl Lag {
    /// What is steady of it, with another line.
    fn steady_s(&mut self, arrival: Time, off: f64) -> f64 {
        match &mut self.now {
            Some((since, least)) if !arrival.is_past(*since, STEADY) && arrival >= *since => {
                *least = least.min(off)
            }
            now => {
                let last = now.replace((arrival, off));
                // After a gap nothing is known.
                self.before =
                    last.filter(|(since, _)| !arrival.is_past(*since, STEADY * 2)).map(|(_, least)| least);
            }
        }
        let least = self.now.map_or(off, |(_, least)| least);
        self.before.map_or(0.0, |before| before.min(least))
    }
}

impl Clock {
    /// A clock for stamps of `zone`.
    pub fn new(zone: TimeZone) -> Self {
        Self {
            zone,
            last: [0; CIVIL_LEN],
            last_len: 0,
            last_nanos: 0,
            offset_s: None,
            is_behind: false,
            lag: Lag::default(),
        }
    }

    /// The instant that a stamp means; `None` when it is no time of any day. `near` gives the year
    /// to stamps that have none.
    pub fn instant(&mut self, stamp: Stamp<'_>, near: Option<Time>) -> Option<Time> {
        let is_last = match stamp.civil.first_chunk() {
            Some(whole) if stamp.civil.len() == CIVIL_LEN => {
                self.last_len == CIVIL_LEN && self.last == *whole
            }
            _ => self.last[..self.last_len] == *stamp.civil,
        };
        if !is_last {
            self.last_nanos = self.nanos_of(stamp.civil, near)?;
            self.last_len = stamp.civil.len();
            self.last[..self.last_len].copy_from_slice(stamp.civil);
        }
        Some(Time::from_nanos(self.last_nanos + i64::from(stamp.millis.unwrap_or(0)) * 1_000_000))
    }

    /// When a line was written: its arrival when it is plausible that it arrived at once, else its
    /// stamp. A `backlog` (a file read from its beginning) always counts as old, and never as newer than its arrival.
    pub fn written_at(&mut self, stamp: Option<Stamp<'_>>, arrival: Time, backlog: bool) -> Time {
        let Some(stamp) = stamp else { return arrival };
        let Some(stamped) = self.instant(stamp, Some(arrival)) else { return arrival };
        let off = arrival.signed_s_since(stamped);
        if backlog {
            // It cannot be from a time to come, up to which nothing that is written later would be listened to.
            if off < -TOLERATED.as_secs_f64() {
                self.offset_s = Some(off.round() as i64);
            }
            return stamped.min(arrival);
        }
        if off.abs() > TOLERATED.as_secs_f64() {
            self.offset_s = Some(off.round() as i64);
            return arrival;
        }
        // What all lines of the last half minute are late by is no time that they waited: only the rest is.
        let steady = self.lag.steady_s(arrival, off);
        let bound = if self.is_behind { NO_MORE_BEHIND } else { PROMPT };
        self.is_behind = steady > bound.as_secs_f64();
        self.offset_s = self.is_behind.then_some(steady.round() as i64);
        // Whole seconds are dated by their arrival also where they are steadily late by less than is told.
        let lag = if self.is_behind || stamp.millis.is_none() { steady.max(0.0) } else { 0.0 };
        let prompt = off - lag > -1.0 && off - lag <= PROMPT.as_secs_f64();
        let written = stamped + Duration::from_secs_f64(lag);
        if prompt && stamp.millis.is_none() { arrival } else { written.min(arrival) }
    }

    /// By how much the stamps of lines differ from their arrival, when that is more than can be right: the zone is
    /// wrong, or a clock is. A backlog shows it where it is from a time to come.
    /// `its lines are stamped 1 h before they arrive: ...`.
    pub fn disagreement(&self) -> Option<String> {
        let off = self.offset_s?;
        let minutes = (off.unsigned_abs() + 30) / 60;
        let long = match (minutes / 60, minutes % 60) {
            _ if off.unsigned_abs() < 120 => format!("{} s", off.unsigned_abs()),
            (0, minutes) => format!("{minutes} min"),
            (hours, 0) => format!("{hours} h"),
            (hours, minutes) => format!("{hours} h {minutes} min"),
        };
        let side = if off > 0 { "before" } else { "after" };
        // Zones differ by whole quarters of an hour.
        let cause = match (minutes + 1) % 15 <= 2 && minutes > 2 {
            true => "is `zone`, the zone of the log's stamps, right?",
            false => "is the clock of the server's machine right, or does its log come late?",
        };
        Some(format!(
            "its lines are stamped {long} {side} they arrive: {cause} Until that is mended they are taken to be written when they arrive"
        ))
    }

    /// Whether they do.
    pub const fn disagrees(&self) -> bool {
        self.offset_s.is_some()
    }

    fn nanos_of(&self, civil: &[u8], near: Option<Time>) -> Option<i64> {
        let (year, rest) = match civil.len() {
            CIVIL_LEN => (i16::try_from(digits(&civil[..4])?).ok()?, &civil[5..]),
            SHORT_LEN => (self.year_near(civil, near?)?, civil),
            _ => return None,
        };
        let part = |i: usize| digits(rest.get(i..i + 2)?).and_then(|n| i8::try_from(n).ok());
        let time = DateTime::new(year, part(0)?, part(3)?, part(6)?, part(9)?, part(12)?, 0).ok()?;
        // The hour that comes twice at the end of summer time.
        let ambiguous = self.zone.to_ambiguous_timestamp(time);
        let nanos = match (near, ambiguous.is_ambiguous()) {
            (Some(near), true) => {
                let apart = |t: &jiff::Timestamp| (t.as_nanosecond() - i128::from(near.nanos())).abs();
                let (earlier, later) = (ambiguous.earlier().ok()?, ambiguous.later().ok()?);
                [earlier, later].into_iter().min_by_key(apart)?.as_nanosecond()
            }
            _ => ambiguous.compatible().ok()?.as_nanosecond(),
        };
        i64::try_from(nanos).ok()
    }

    /// The year that puts a stamp without one closest to `near`.
    fn year_near(&self, civil: &[u8], near: Time) -> Option<i16> {
        let now = jiff::Timestamp::from_nanosecond(i128::from(near.nanos())).ok()?;
        let today = self.zone.to_datetime(now);
        let month = i16::try_from(digits(&civil[..2])?).ok()?;
        let apart = month - i16::from(today.month());
        Some(today.year() - i16::from(apart > 6) + i16::from(apart < -6))
    }
}

/// Whether bytes are `YYYY-MM-DD HH:MM:SS`.
pub fn is_civil(bytes: &[u8]) -> bool {
    const SHAPE: &[u8; CIVIL_LEN] = b"dddd-dd-dd dd:dd:dd";
    bytes.len() >= CIVIL_LEN
        && SHAPE.iter().zip(bytes).all(|(s, b)| if *s == b'd' { b.is_ascii_digit() } else { s == b })
}

/// Whether bytes are `MM-DD HH:MM:SS`.
pub fn is_short(bytes: &[u8]) -> bool {
    const SHAPE: &[u8; SHORT_LEN] = b"dd-dd dd:dd:dd";
    bytes.len() >= SHORT_LEN
        && SHAPE.iter().zip(bytes).all(|(s, b)| if *s == b'd' { b.is_ascii_digit() } else { s == b })
}

fn digits(bytes: &[u8]) -> Option<u32> {
    bytes.iter().try_fold(0_u32, |n, b| b.is_ascii_digit().then(|| n * 10 + u32::from(b - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(civil: &str) -> Stamp<'_> {
        Stamp { civil: civil.as_bytes(), millis: None }
    }

    #[test]
    fn a_stamp_is_taken_in_its_zone() {
        let mut utc = Clock::new(TimeZone::UTC);
        let at = utc.instant(stamp("2026-11-24 03:48:06"), None).expect("a time");
        assert_eq!(at, Time::from_epoch_s(1_795_492_086.0));
        let mut berlin = Clock::new(TimeZone::get("Europe/Berlin").expect("bundled"));
        let same = berlin.instant(stamp("2026-11-24 04:48:06"), None).expect("a time");
        assert_eq!(same, at);
        let millis = Stamp { millis: Some(250), ..stamp("2026-11-24 03:48:06") };
        assert_eq!(utc.instant(millis, None), Some(Time::from_epoch_s(1_795_492_086.25)));
        assert_eq!(utc.instant(stamp("2026-13-24 03:48:06"), None), None);
    }

    #[test]
    fn in_the_hour_that_comes_twice_a_stamp_is_the_one_nearer_to_its_arrival() {
        // 2026-10-25 02:30 is 00:30 UTC, and an hour later again.
        for arrival in [1_792_888_200.4, 1_792_891_800.4] {
            let arrival = Time::from_epoch_s(arrival);
            let line = Stamp { millis: Some(0), ..stamp("2026-10-25 02:30:00") };
            let mut berlin = Clock::new(TimeZone::get("Europe/Berlin").expect("bundled"));
            let written = berlin.written_at(Some(line), arrival, false);
            assert!((arrival.signed_s_since(written) - 0.4).abs() < 1e-6, "{written} {arrival}");
            assert_eq!(berlin.disagreement(), None);
        }
    }

    #[test]
    fn a_stamp_without_a_year_takes_the_nearest() {
        let mut utc = Clock::new(TimeZone::UTC);
        let new_year = Time::from_epoch_s(1_798_761_610.0); // 2027-01-01 00:00:10
        let before = utc.instant(stamp("12-31 23:59:59"), Some(new_year)).expect("a time");
        assert_eq!(before, Time::from_epoch_s(1_798_761_599.0));
    }

    #[test]
    fn a_line_that_arrives_at_once_is_as_old_as_its_arrival() {
        let mut utc = Clock::new(TimeZone::UTC);
        let line = Some(stamp("2026-11-24 03:48:06"));
        let at = |s: f64| Time::from_epoch_s(s);
        assert_eq!(utc.written_at(line, at(1_795_492_086.7), false), at(1_795_492_086.7));
        assert_eq!(utc.written_at(line, at(1_795_492_099.0), false), at(1_795_492_086.0), "it was held up");
        assert_eq!(utc.written_at(line, at(1_795_499_999.0), true), at(1_795_492_086.0), "a backlog is old");
        assert_eq!(utc.disagreement(), None);
        assert_eq!(utc.written_at(line, at(1_795_495_686.2), false), at(1_795_495_686.2), "the wrong zone");
        insta::assert_snapshot!(utc.disagreement().expect("it was seen"), @"its lines are stamped 1 h before they arrive: is `zone`, the zone of the log's stamps, right? Until that is mended they are taken to be written when they arrive");
        utc.written_at(line, at(1_795_491_686.2), false);
        insta::assert_snapshot!(utc.disagreement().expect("it was seen"), @"its lines are stamped 7 min after they arrive: is the clock of the server's machine right, or does its log come late? Until that is mended they are taken to be written when they arrive");
        utc.written_at(line, at(1_795_492_086.7), false);
        assert_eq!(utc.disagreement(), None);
        assert_eq!(utc.written_at(None, at(5.0), false), at(5.0));
    }

    #[test]
    fn lines_that_are_all_late_by_as_much_are_written_when_they_arrive_and_that_is_told() {
        let mut utc = Clock::new(TimeZone::UTC);
        let stamps: Vec<String> =
            (0..80).map(|s| format!("2026-11-24 03:{:02}:{:02}", 48 + s / 60, s % 60)).collect();
        let mut late = |s: usize, by: f64| {
            let arrival = Time::from_epoch_s(1_795_492_080.0 + s as f64 + by);
            arrival.signed_s_since(utc.written_at(Some(stamp(&stamps[s])), arrival, false))
        };
        let first: Vec<f64> = (0..20).map(|s| late(s, 10.3)).collect();
        assert!(first.iter().all(|late| *late > 10.0), "it may be held up: {first:?}");
        for s in 20..60 {
            late(s, 10.3);
        }
        assert!(late(60, 10.4) < 0.2);
        assert!((late(61, 18.3) - 8.0).abs() < 0.2, "held up by eight seconds");
        let told = utc.disagreement().expect("it is told");
        assert!(told.starts_with("its lines are stamped 10 s before they arrive: is the clock"), "{told}");
    }

    #[test]
    fn a_log_that_is_steadily_about_three_seconds_late_is_told_once_and_its_times_do_not_jump() {
        let mut utc = Clock::new(TimeZone::UTC);
        let (mut told, mut was_told, mut turns, mut last) = (0, false, 0, Time::from_epoch_s(0.0));
        for s in 0..1200_usize {
            let civil = format!("2026-11-24 {:02}:{:02}:{:02}", 4 + s / 3600, s / 60 % 60, s % 60);
            // A lag that rises and falls by a third of a second in five minutes, and a reader that comes round
            // when it comes round.
            let late = 3.0 + 0.35 * (s as f64 / 48.0).sin() + (s * 7 % 10) as f64 * 0.06;
            let arrival = Time::from_epoch_s(1_795_492_800.0 + s as f64 + late);
            let written = utc.written_at(Some(stamp(&civil)), arrival, false);
            if s >= 100 {
                turns += u32::from(utc.disagrees() != was_told);
                let step = written.signed_s_since(last);
                assert!((-0.1..2.0).contains(&step), "{s}: {step}");
            }
            told += u32::from(utc.disagrees() && !was_told);
            (was_told, last) = (utc.disagrees(), written);
        }
        assert_eq!((told, turns <= 1), (1, true), "{turns}");
        // Once it comes at once again, that is over.
        for s in 1200..1300_usize {
            let civil = format!("2026-11-24 {:02}:{:02}:{:02}", 4 + s / 3600, s / 60 % 60, s % 60);
            let arrival = Time::from_epoch_s(1_795_492_800.0 + s as f64 + 1.2);
            assert_eq!(utc.written_at(Some(stamp(&civil)), arrival, false), arrival);
        }
        assert_eq!(utc.disagreement(), None);
    }

    #[test]
    fn a_backlog_was_written_before_it_is_read_whatever_its_zone() {
        let mut new_york = Clock::new(TimeZone::get("America/New_York").expect("bundled"));
        let (line, arrival) = (Some(stamp("2026-11-24 03:48:06")), Time::from_epoch_s(1_795_492_086.7));
        assert_eq!(new_york.written_at(line, arrival, true), arrival, "it is stamped five hours ahead");
        let disagreement = new_york.disagreement().expect("it was seen");
        assert!(
            disagreement.starts_with("its lines are stamped 5 h after they arrive: is `zone`"),
            "{disagreement}"
        );
        // A clock that is a moment ahead is no other zone.
        let mut utc = Clock::new(TimeZone::UTC);
        let just_before = Time::from_epoch_s(1_795_492_085.0);
        assert_eq!(utc.written_at(line, just_before, true), just_before);
        assert_eq!(utc.disagreement(), None);
    }
}
