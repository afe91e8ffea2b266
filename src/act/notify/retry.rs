//! When a message that could not be delivered is tried again, and when it is given up. Pure.

use std::time::Duration;

use skewtrap_trace::time::Time;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
/// Nobody acts on a message that is older than this.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(24 * 3600);

/// When to try again after `attempts` failed ones (at least one). The full wait is 1, 2, 4 ...
/// seconds and at most five minutes; `random`, from 0 to 1, takes up to half of it away, so that
/// agents which failed at the same moment do not all return at the same moment. This is the "equal
/// jitter" of the AWS Architecture Blog, "Exponential Backoff And Jitter" (2015).
pub fn retry_at(attempts: u32, now: Time, random: f64) -> Time {
    let doublings = attempts.saturating_sub(1).min(20);
    let longest = FIRST.saturating_mul(1 << doublings).min(LONGEST);
    now + longest.mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0)
}

/// Whether a message created at `created` is too old to be tried at `due`.
pub fn is_too_old(created: Time, due: Time) -> bool {
    due.since(created) > GIVE_UP_AFTER
}

/// When a message is tried that was created at `created` and is due at `due`. Times that only a clock which
/// was ahead can have written (created later than `now`, or due later than it would be given up) mean at once.
pub fn tried_at(created: Time, due: Time, now: Time) -> Time {
    let was_ahead = created > now || is_too_old(created, due);
    if was_ahead { now } else { due }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_twice_as_long_each_time_up_to_five_minutes() {
        let now = Time::from_epoch_s(1000.0);
        let waits: Vec<f64> = (0..12).map(|n| retry_at(n, now, 0.0).signed_s_since(now)).collect();
        assert_eq!(waits, [1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0]);
        assert_eq!(retry_at(u32::MAX, now, 0.0).signed_s_since(now), 300.0);
    }

    #[test]
    fn chance_shortens_a_wait_by_at_most_half() {
        let now = Time::from_epoch_s(1000.0);
        let wait = |random| retry_at(4, now, random).signed_s_since(now);
        assert_eq!([wait(0.0), wait(0.25), wait(0.5), wait(1.0)], [8.0, 7.0, 6.0, 4.0]);
        assert_eq!([wait(-1.0), wait(2.0)], [8.0, 4.0], "it never leaves that range");
    }

    #[test]
    fn a_clock_that_was_ahead_holds_no_message_back() {
        let at = Time::from_epoch_s;
        assert_eq!(tried_at(at(0.0), at(300.0), at(10.0)), at(300.0));
        assert_eq!(tried_at(at(0.0), at(31_536_000.0), at(10.0)), at(10.0), "due in a year");
        assert_eq!(tried_at(at(90_000.0), at(90_001.0), at(10.0)), at(10.0), "created tomorrow");
    }

    #[test]
    fn it_gives_up_after_a_day() {
        let created = Time::from_epoch_s(0.0);
        assert!(!is_too_old(created, Time::from_epoch_s(86_400.0)));
        assert!(is_too_old(created, Time::from_epoch_s(86_401.0)));
    }
}
