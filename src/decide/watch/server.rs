//! What the core remembers of one server beside its signals: the facts that pre-flight asks for,
//! the window of ours that is open on it, and the time in which its samples are distrusted.

use std::sync::Arc;
use std::time::Duration;

use super::event::{OpenWindow, ServerFact, WindowNews};
use crate::decide::capture::facts::Facts;
use crate::decide::capture::line::ProfileLine;
use crate::decide::capture::window::{Blind, Phase};
use crate::decide::signal::rank::Rank;
use crate::decide::signal::sample::TargetId;
use crate::decide::signal::store::SignalStore;
use crate::decide::time::Time;

/// How far back it is asked which ranks had work.
const HEARD: Duration = Duration::from_secs(30);

/// One server.
#[derive(Debug)]
pub struct Server {
    /// Its configured name.
    pub name: Arc<str>,
    /// Servers of one group have one window at a time.
    pub group: Arc<str>,
    /// What pre-flight asks for.
    pub facts: Facts,
    /// Ours.
    pub window: Option<OpenWindow>,
    /// While and after a window of ours.
    pub blind: Option<Blind>,
}

impl Server {
    /// A server of which nothing is known yet.
    pub fn new(name: Arc<str>, group: Arc<str>, sees_log: bool) -> Self {
        Self { name, group, facts: Facts { sees_log, ..Facts::default() }, window: None, blind: None }
    }

    /// It was looked at.
    pub fn seen(&mut self, fact: ServerFact, now: Time) {
        match fact {
            ServerFact::Info(info) => self.facts.server = Some(info),
            ServerFact::Lost => self.facts.server_lost(),
            ServerFact::Health(answer) => self.facts.health.answered(answer, now),
            ServerFact::Folder(folder) => self.facts.folder_seen(folder),
        }
    }

    /// A profiling line of its log. Returns the incident whose window should hear of it.
    pub fn profile_line(&mut self, rank: Rank, line: &ProfileLine, at: Time) -> Option<Arc<str>> {
        self.facts.profile_line(rank, line, at);
        self.window.as_ref().map(|w| w.incident.clone())
    }

    /// Ours is being started.
    pub fn window_opened(&mut self, window: OpenWindow) {
        self.facts.own.opened(window.marks.clone());
        self.window = Some(window);
    }

    /// Our window went on.
    pub fn window_news(&mut self, news: &WindowNews, now: Time) {
        match news {
            WindowNews::Entered(phase) => {
                let Some(window) = &mut self.window else { return };
                (window.phase, window.since) = (*phase, now);
                let blind = self.blind.get_or_insert(Blind::opened(now));
                match phase {
                    Phase::Stopping | Phase::Exporting => {
                        blind.closing.get_or_insert(now);
                    }
                    Phase::Verifying | Phase::Ended => blind.exported(now),
                    Phase::Starting | Phase::Doubtful | Phase::Unknown | Phase::Open => {}
                }
            }
            WindowNews::Ended { .. } => {
                self.window = None;
                self.facts.own.ended();
                if let Some(blind) = self.blind.as_mut().filter(|b| b.until.is_none()) {
                    blind.exported(now);
                }
            }
        }
    }

    /// Which ranks had work lately, by the samples that are kept: asked only when a window is
    /// wished for, so that recording a sample costs nothing more.
    pub fn note_work(&mut self, id: TargetId, store: &SignalStore, now: Time) {
        for (rank, seen, worked) in store.work(id, now - HEARD) {
            self.facts.rank_seen(rank, false, seen);
            if let Some(worked) = worked {
                self.facts.rank_seen(rank, true, worked);
            }
        }
    }
}
