//! What is kept over a restart, by another clock.

use super::{ClosedTrouble, OpenTrouble, Saved};
use crate::factor::trouble::Trouble;

impl Saved {
    /// The same by a clock that says `by_s` seconds more.
    #[must_use]
    pub fn shifted(mut self, by_s: f64) -> Self {
        self.firings.shift(by_s);
        self.open.iter_mut().for_each(|OpenTrouble { trouble, .. }| shift(trouble, by_s));
        for ClosedTrouble { trouble, ended, at, .. } in &mut self.closed {
            shift(trouble, by_s);
            *ended += by_s;
            *at += by_s;
        }
        self
    }
}

fn shift(trouble: &mut Trouble, by_s: f64) {
    trouble.fired += by_s;
    trouble.onset.iter_mut().for_each(|onset| onset.at += by_s);
    trouble.symptoms.iter_mut().for_each(|symptom| symptom.seen += by_s);
}
