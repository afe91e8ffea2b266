//! What is kept over a restart, by another clock.

use super::{Closed, Open, Saved};
use crate::factor::incident::Incident;

impl Saved {
    /// The same by a clock that says `by_s` seconds more.
    #[must_use]
    pub fn shifted(mut self, by_s: f64) -> Self {
        self.firings.shift(by_s);
        self.open.iter_mut().for_each(|Open { incident, .. }| shift(incident, by_s));
        for Closed { incident, ended, at, .. } in &mut self.closed {
            shift(incident, by_s);
            *ended += by_s;
            *at += by_s;
        }
        self
    }
}

fn shift(incident: &mut Incident, by_s: f64) {
    incident.fired += by_s;
    incident.onset.iter_mut().for_each(|onset| onset.at += by_s);
    incident.symptoms.iter_mut().for_each(|symptom| symptom.seen += by_s);
}
