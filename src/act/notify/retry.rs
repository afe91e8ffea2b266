//! When a message that could not be delivered is tried again, and when no more. Pure.

use std::time::Duration;

use skewtrap_trace::time::Time;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
/// A message older than this is news to nobody.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(24 * 3600);

/// When to try again after `attempts` failed ones (at least one): 1, 2, 4 ... seconds later, at
/// most five minutes.
pub fn retry_at(attempts: u32, now: Time) -> Time {
    let doublings = attempts.saturating_sub(1).min(20);
    now + FIRST.saturating_mul(1 << doublings).min(LONGEST)
}

/// Whether a message created at `created` is too old to be tried at `due`.
pub fn is_too_old(created: Time, due: Time) -> bool {
    due.since(created) > GIVE_UP_AFTER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_twice_as_long_each_time_up_to_five_minutes() {
        let now = Time::from_epoch_s(1000.0);
        let waits: Vec<f64> = (0..12).map(|n| retry_at(n, now).signed_s_since(now)).collect();
        assert_eq!(waits, [1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0]);
        assert_eq!(retry_at(u32::MAX, now).signed_s_since(now), 300.0);
    }

    #[test]
    fn it_gives_up_after_a_day() {
        let created = Time::from_epoch_s(0.0);
        assert!(!is_too_old(created, Time::from_epoch_s(86_400.0)));
        assert!(is_too_old(created, Time::from_epoch_s(86_401.0)));
    }
}
