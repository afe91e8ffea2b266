//! Writes incidents into their bundles as the core reports them: one task, in order, so that a
//! record never goes back in time. A full disk costs a bundle, never the watching.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::act::bundle::{BundleError, Bundles};
use crate::act::retention;
use crate::act::state::State;
use crate::agent::AgentEvent;
use crate::clock::Clock;
use crate::observe::artifact::room;
use skewtrap_core::capture::keep::{BundleSpace, Keep};
use skewtrap_core::incident::{Incident, Record};
use skewtrap_core::signal::catalog::Catalog;
use skewtrap_core::signal::store::StoredSample;

/// Something to be written.
#[derive(Debug)]
pub enum Job {
    /// An incident that fired, with what the store remembers of its group.
    Create {
        /// Its record.
        record: Box<Record>,
        /// For `evidence.jsonl`.
        evidence: Samples,
    },
    /// An incident changed.
    Update(Box<Incident>),
    /// An incident's capture ended: with this its bundle is complete, and the state may forget it.
    Captured(Box<Incident>),
    /// Room is to be made for a window of so many bytes.
    MakeRoom(u64),
}

/// What the store remembers of a group: hundreds of thousands of samples at the most, which the loop
/// hands over as they are.
#[derive(Debug)]
pub struct Samples {
    /// What the signals are called.
    pub catalog: Arc<Catalog>,
    /// The samples.
    pub seen: Vec<StoredSample>,
}

impl Samples {
    /// `evidence.jsonl`.
    pub fn lines(&self) -> Vec<u8> {
        let mut lines = Vec::new();
        for seen in &self.seen {
            let line = serde_json::json!({
                "t": seen.at, "signal": self.catalog.name_of(seen.signal), "rank": seen.rank,
                "value": seen.value, "source": seen.source,
            });
            lines.extend_from_slice(line.to_string().as_bytes());
            lines.push(b'\n');
        }
        lines
    }
}

/// Where jobs go.
pub type Archive = mpsc::UnboundedSender<Job>;

/// Writes bundles until every sender is gone; reports to the loop what each sweep left.
pub async fn run(
    bundles: Bundles,
    state: State,
    keep: Keep,
    clock: Clock,
    mut jobs: mpsc::UnboundedReceiver<Job>,
    tx: mpsc::Sender<AgentEvent>,
) {
    let mut warned = None;
    while let Some(job) = jobs.recv().await {
        let (bundles, state, keep) = (bundles.clone(), state.clone(), keep);
        let work = crate::world::blocking(move || one(&bundles, &state, &keep, clock, job));
        match work.await {
            Ok(Some(space)) => {
                if warned != space.stuck {
                    warned.clone_from(&space.stuck);
                    if let Some(stuck) = &warned {
                        tracing::warn!("{stuck}: it cannot be deleted, and counts against keep.bytes");
                    }
                }
                // A loop that is busy takes the next sweep.
                let _ = tx.try_send(AgentEvent::Swept(space));
            }
            Ok(None) => {}
            Err(error) => tracing::error!("a bundle could not be written: {error}"),
        }
    }
}

fn one(bundles: &Bundles, state: &State, keep: &Keep, clock: Clock, job: Job) -> Option<BundleSpace> {
    match job {
        Job::Create { record, evidence } => {
            if let Err(error) = create(bundles, *record, &evidence.lines()) {
                tracing::error!("{error}");
            }
            None
        }
        Job::Update(incident) => {
            if let Err(error) = bundles.update(*incident) {
                tracing::error!("{error}");
            }
            None
        }
        Job::Captured(incident) => {
            let id = incident.id.clone();
            let written = bundles.update(*incident).map_err(|e| e.to_string());
            if let Err(error) = written.and_then(|()| state.delete_incident(&id).map_err(|e| e.to_string())) {
                tracing::error!("{error}");
            }
            None
        }
        Job::MakeRoom(bytes) => {
            let swept = retention::sweep(bundles, state.agent(), keep, bytes, clock.now());
            for incident in &swept.deleted {
                tracing::info!(incident, "its bundle was deleted: the newer ones need the room");
            }
            Some(BundleSpace {
                bytes: swept.bytes_left,
                limit: keep.bytes,
                free: room(bundles.root()).map(|r| r.free),
                over: swept.over,
                stuck: swept.stuck.first().map(|(path, why)| format!("{}: {why}", path.display())),
            })
        }
    }
}

fn create(bundles: &Bundles, mut record: Record, evidence: &[u8]) -> Result<(), BundleError> {
    record.incident.bundle = Some(bundles.path(&record.incident.id).display().to_string());
    bundles.create(&record, evidence).map(|_| ())
}
