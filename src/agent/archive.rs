//! Keeps the bundles: one task writes them in order, so that an incident's record is never older
//! than what came before. A full disk costs a bundle, never the watching.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::act::bundle::Bundles;
use crate::act::retention;
use crate::agent::Inbox;
use crate::agent::clock::Clock;
use crate::decide::capture::keep::{BundleSpace, Keep};
use crate::decide::capture::verify::Artifact;
use crate::decide::incident::{CaptureOutcome, CapturedFile, Incident, Record};
use crate::observe::artifact::room;

/// Something to be kept.
#[derive(Debug)]
pub enum Job {
    /// An incident that fired, with what the store remembers of its group.
    Create {
        /// Its record.
        record: Box<Record>,
        /// Lines of `evidence.jsonl`.
        evidence: Vec<u8>,
        /// Files that a window brought.
        files: Vec<Artifact>,
        /// Where the bundle lies and what became of the files; `None` when it could not be written.
        done: Option<oneshot::Sender<Option<Filed>>>,
    },
    /// An incident went on.
    Update(Box<Incident>),
    /// Room is to be made for a window of so many bytes.
    MakeRoom(u64),
}

/// A bundle that was written.
#[derive(Debug)]
pub struct Filed {
    /// Where.
    pub path: PathBuf,
    /// Its files.
    pub files: Vec<CapturedFile>,
}

/// Where jobs go.
pub type Archive = mpsc::UnboundedSender<Job>;

/// Writes bundles until every sender is gone; tells the loop what each sweep left.
pub async fn run(
    bundles: Bundles,
    agent: Arc<str>,
    keep: Keep,
    clock: Clock,
    mut jobs: mpsc::UnboundedReceiver<Job>,
    tell: mpsc::Sender<Inbox>,
) {
    let mut told = None;
    while let Some(job) = jobs.recv().await {
        let (bundles, agent, keep) = (bundles.clone(), agent.clone(), keep);
        let work = tokio::task::spawn_blocking(move || one(&bundles, &agent, &keep, clock, job));
        match work.await {
            Ok(Some(space)) => {
                if told != space.stuck {
                    told.clone_from(&space.stuck);
                    if let Some(stuck) = &told {
                        tracing::warn!("{stuck}: it cannot be deleted, and counts against keep.bytes");
                    }
                }
                // A loop that is full hears of the next sweep.
                let _ = tell.try_send(Inbox::Swept(space));
            }
            Ok(None) => {}
            Err(error) => tracing::error!("a bundle could not be written: {error}"),
        }
    }
}

fn one(bundles: &Bundles, agent: &str, keep: &Keep, clock: Clock, job: Job) -> Option<BundleSpace> {
    match job {
        Job::Create { record, evidence, files, done } => {
            let filed = create(bundles, *record, &evidence, &files);
            if let Some(done) = done {
                // Nobody waits any more when the agent ends; the bundle is there all the same.
                let _ = done.send(filed);
            }
            None
        }
        Job::Update(incident) => {
            let mut record = bundles.read(&incident.id)?;
            record.incident = *incident;
            if let Err(error) = bundles.write(&record) {
                tracing::error!("{error}");
            }
            None
        }
        Job::MakeRoom(bytes) => {
            let swept = retention::sweep(bundles, agent, keep, bytes, clock.now());
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

fn create(bundles: &Bundles, mut record: Record, evidence: &[u8], files: &[Artifact]) -> Option<Filed> {
    let filed = (|| {
        let path = bundles.create(&record, evidence)?;
        record.files = bundles.adopt(&record.incident.id, files)?;
        record.incident.bundle = Some(path.display().to_string());
        if let CaptureOutcome::Done(captured) | CaptureOutcome::Failed { captured: Some(captured), .. } =
            &mut record.incident.capture
        {
            captured.files.clone_from(&record.files);
        }
        bundles.write(&record)?;
        Ok::<_, crate::act::bundle::BundleError>(Filed { path, files: record.files.clone() })
    })();
    filed.map_err(|error| tracing::error!("{error}")).ok()
}
