//! The death of a server, as its own log says it: told once, in the incident of a rule whose window was open on it, or
//! else in the last one that fires there, or else in an incident of its own.
//!
//! Without a log nobody says that a server died: refused connections may be anything.

use std::sync::Arc;
use std::time::Duration;

use super::Mode;
use super::core::{Core, notify};
use super::event::Effect;
use super::incidents::Trigger;
use crate::incident::Death;
use crate::message::Update;
use crate::rule::Severity;
use crate::signal::sample::TargetId;
use skewtrap_trace::time::Time;

/// The rule of an incident that is nothing but a server's death.
pub const SERVER_DIED: &str = "server-died";
/// Lines about a death that are closer together are about the same one: every process prints its own.
const SAME: Duration = Duration::from_secs(300);

impl Core {
    /// The log of a server says that it dies.
    pub(super) fn server_dies(&mut self, target: TargetId, line: String, now: Time, out: &mut Vec<Effect>) {
        out.push(Effect::Dying { target, line: line.clone() });
        let Some(server) = self.servers.get_mut(usize::from(target.0)) else { return };
        let is_known = server.died.replace(now).is_some_and(|before| now.since(before) < SAME);
        if is_known || self.mode != Mode::Live {
            return;
        }
        let (name, window) = (server.name.clone(), server.window.as_ref().map(|w| w.incident.clone()));
        let death = Death { at: now, line, window_open: window.is_some() };
        // Not in one of a window that somebody asked for: nobody who is alerted is told of those. Nor in one of which
        // nobody is told anything in a silence, or in an imbalance that may have stood for weeks.
        let is_untold = |id: &Arc<str>| {
            self.incidents.get(id).is_some_and(|a| {
                let is_apart = a.silenced.is_some() || matches!(a.trigger, Trigger::Standing);
                a.incident.died.is_none() && !a.incident.is_by_hand() && !is_apart
            })
        };
        let firing = self.incidents.firing_now().filter(|a| a.incident.target == name);
        let firing = firing.map(|active| active.incident.id.clone()).filter(is_untold).max();
        let id = match window.filter(is_untold).or(firing) {
            Some(id) => id,
            // It did not live again since: a server that dies in each of its starts.
            None if self.incidents.is_dead(&name) => return,
            None => {
                let silenced = self.silenced_until(SERVER_DIED, &name, now);
                self.incidents.open_death(SERVER_DIED, name, &death, silenced)
            }
        };
        let Some(active) = self.incidents.get_mut(&id) else { return };
        active.incident.died = Some(death);
        active.incident.raise(Severity::Critical, now);
        notify(active, Update::Died, out);
    }

    /// A server that died answers again: an incident that was nothing but its death is over. That is no
    /// message of its own, but ends what receivers keep open.
    pub(super) fn server_is_back(&mut self, target: TargetId, now: Time, out: &mut Vec<Effect>) {
        let Some(server) = self.servers.get_mut(usize::from(target.0)) else { return };
        if server.died.take().is_none() {
            return;
        }
        let name = server.name.clone();
        for active in self.incidents.resolve_deaths(&name, now) {
            let incident = Box::new(active.incident.clone());
            let (update, receivers) = (Update::Resolved, active.notify.clone());
            out.push(match active.silenced {
                Some(_) => Effect::Store { incident },
                None => Effect::Notify { incident, update, only_edits: true, receivers },
            });
        }
    }
}
