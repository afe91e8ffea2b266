//! The cause of what fired: looked for at the firing and twice more while samples come in, so that it is
//! known within ten seconds.

use std::sync::Arc;

use super::core::Core;
use super::event::Effect;
use crate::cause::{self, LOOKS, Past};
use crate::incident::Incident;
use crate::signal::store::SignalStore;
use skewtrap_trace::time::Time;

impl Core {
    /// Looks for the cause of an incident that has just fired, and remembers to look again.
    pub(super) fn look_for_cause(&mut self, store: &SignalStore, id: &Arc<str>, now: Time) {
        self.looks.insert(id.clone(), (now, 0));
        self.look(store, id, now);
    }

    /// The looks that are due. An incident whose cause was found or changed is stored; nobody is told by
    /// a message of its own.
    pub(super) fn refresh_due_causes(&mut self, store: &SignalStore, now: Time, out: &mut Vec<Effect>) {
        let is_due = |(_, (fired, done)): &(&Arc<str>, &(Time, usize))| {
            LOOKS.get(*done).is_none_or(|after| now >= *fired + *after || now < *fired)
        };
        let due: Vec<Arc<str>> = self.looks.iter().filter(is_due).map(|(id, _)| id.clone()).collect();
        for id in due {
            self.look(store, &id, now);
            if let Some(active) = self.incidents.get(&id) {
                out.push(Effect::Store { incident: Box::new(active.incident.clone()) });
            }
        }
    }

    fn look(&mut self, store: &SignalStore, id: &Arc<str>, now: Time) {
        let Some((_, done)) = self.looks.get_mut(id) else { return };
        *done += 1;
        if *done >= LOOKS.len() {
            self.looks.remove(id);
        }
        if self.incidents.get(id).is_some_and(|active| active.incident.resolved_at.is_some()) {
            // What came after its end says nothing of its cause.
            self.looks.remove(id);
            return;
        }
        self.refresh_cause(store, id, now);
    }

    /// Explains an incident by what is known now: also just before its window is sized, which follows from
    /// whether its rank's host is slow.
    pub(super) fn refresh_cause(&mut self, store: &SignalStore, id: &Arc<str>, now: Time) {
        self.refresh_impact(store, id, now);
        let healthy_since = self.incidents.get(id).and_then(|active| self.healthy_since(&active.incident));
        let Some(active) = self.incidents.get_mut(id) else { return };
        if active.incident.resolved_at.is_some() {
            return;
        }
        let server = self.servers.iter().find(|s| s.name == active.incident.target);
        let past = Past { captured_at: server.and_then(|s| s.facts.foreign.last()), healthy_since };
        let found = cause::explain(store, &active.group, &active.incident.finding, past, now);
        let before = active.incident.cause.take();
        active.incident.cause = match found {
            Some(found) => Some(found.after(before)),
            None => before,
        };
    }

    /// When the last trouble of the same server was over that had ended when this incident began.
    fn healthy_since(&self, incident: &Incident) -> Option<Time> {
        let others = self.incidents.newest_first().map(|active| &active.incident);
        let before = others.filter(|other| other.id != incident.id && other.target == incident.target);
        before.filter_map(|other| other.resolved_at.filter(|at| *at <= incident.finding.onset)).max()
    }
}
