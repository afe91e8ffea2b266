//! From an ever growing counter to its rate, one state for each series: rates of two ranks must
//! never be computed across each other.

use skewtrap_trace::time::Time;

/// The last reading of one counter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    last: Option<(Time, f64)>,
}

impl Rate {
    /// The rate per second since the last reading; `None` for the first reading, and for one that
    /// is not later than the last. A counter that fell was restarted at zero in between (the
    /// convention of Prometheus), so its whole value is growth.
    pub fn step(&mut self, at: Time, total: f64) -> Option<f64> {
        let last = self.last;
        if last.is_some_and(|(then, _)| at == then) {
            return None;
        }
        self.last = Some((at, total));
        let (then, before) = last?;
        let seconds = at.signed_s_since(then);
        let growth = if total < before { total } else { total - before };
        (seconds > 0.0 && growth.is_finite()).then(|| growth / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_survives_a_restart_of_its_counter_and_a_clock_that_jumps_back() {
        let mut rate = Rate::default();
        let at = Time::from_epoch_s;
        assert_eq!(rate.step(at(10.0), 100.0), None, "one reading has no rate");
        assert_eq!(rate.step(at(12.0), 150.0), Some(25.0));
        assert_eq!(rate.step(at(12.0), 150.0), None, "the same page twice");
        assert_eq!(rate.step(at(14.0), 30.0), Some(15.0), "restarted");
        assert_eq!(rate.step(at(3.0), 40.0), None, "the clock jumped back");
        assert_eq!(rate.step(at(4.0), 44.0), Some(4.0));
    }
}
