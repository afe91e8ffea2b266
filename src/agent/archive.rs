//! Writes incidents into their bundles as the core reports them: one task, in order, so that a
//! record never goes back in time. A full disk costs a bundle, never the watching.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::act::bundle::{BundleError, Bundles, Evidence};
use crate::act::retention;
use crate::act::state::State;
use crate::agent::AgentEvent;
use crate::clock::Clock;
use crate::http::body::HeldBytes;
use crate::observe::artifact::room;
use crate::serve::metrics::Metrics;
use skewtrap_core::capture::keep::{BundleSpace, Keep};
use skewtrap_core::incident::{Incident, Record};
use skewtrap_core::signal::catalog::Catalog;
use skewtrap_core::signal::sample::Source;
use skewtrap_core::signal::store::StoredSeries;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// Something to be written.
#[derive(Debug)]
pub enum Job {
    /// An incident that fired, with what the store remembers of its group.
    Create {
        record: Box<Record>,
        /// For `evidence.jsonl`.
        evidence: Samples,
    },
    /// An incident changed.
    Update(Box<Incident>),
    /// An incident's capture ended: with this its bundle is complete, and the state may forget it.
    Captured(Box<Incident>),
    /// Room is to be made for a window of so many bytes; what tells that this waits is dropped when it is done.
    MakeRoom(u64, Arc<()>),
}

/// What the store remembers of a group: hundreds of thousands of samples at the most, which the loop
/// hands over as they are.
#[derive(Debug, Default)]
pub struct Samples {
    /// What the signals are called.
    pub catalog: Arc<Catalog>,
    /// The samples.
    pub seen: Vec<StoredSeries>,
    /// Their room, until they are written.
    pub held: HeldBytes,
}

impl Samples {
    /// Bytes that the samples of these series take.
    pub fn bytes_of(seen: &[StoredSeries]) -> usize {
        seen.iter().map(|series| size_of_val(series) + size_of_val(&series.samples[..])).sum()
    }
}

/// A line of `evidence.jsonl`; its keys in the order of the alphabet, as everywhere.
#[derive(Serialize)]
struct Line<'a> {
    rank: Rank,
    signal: &'a str,
    source: Source,
    t: Time,
    value: f64,
}

impl Evidence for Samples {
    fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        for StoredSeries { signal, rank, source, samples } in &self.seen {
            let signal = self.catalog.name_of(*signal);
            for (t, value) in samples {
                let line = Line { rank: *rank, signal, source: *source, t: *t, value: *value };
                serde_json::to_writer(&mut *out, &line)?;
                out.write_all(b"\n")?;
            }
        }
        Ok(())
    }
}

/// How long the loop may be busy before it is not told that a bundle was begun.
const TAKEN_WITHIN: Duration = Duration::from_secs(2);

/// Where jobs go.
pub type Archive = mpsc::UnboundedSender<Job>;

/// Writes bundles until every sender is gone; reports to the loop what each sweep left. What comes before the
/// folders are there waits for them.
pub async fn run(
    folders: oneshot::Receiver<(Bundles, State)>,
    keep: Keep,
    clock: Clock,
    mut jobs: mpsc::UnboundedReceiver<Job>,
    tx: mpsc::Sender<AgentEvent>,
    metrics: Arc<Metrics>,
) {
    // They never come where the agent ends before its disk answers.
    let Ok((bundles, state)) = folders.await else { return };
    let mut warned = None;
    while let Some(job) = jobs.recv().await {
        let begun = match &job {
            Job::Create { record, .. } => Some(record.incident.id.clone()),
            _ => None,
        };
        let (ours, state) = (bundles.clone(), state.clone());
        let work = crate::world::blocking(move || one(&ours, &state, &keep, clock, job));
        match work.await {
            Ok(Done::Swept(space)) => {
                if warned != space.stuck {
                    warned.clone_from(&space.stuck);
                    if let Some(stuck) = &warned {
                        tracing::warn!("{stuck}: it cannot be deleted, and counts against keep.bytes");
                    }
                }
                // A loop that is busy takes the next sweep.
                let _ = tx.try_send(AgentEvent::Swept(space));
            }
            Ok(Done::Wrote(Ok(true))) => {
                metrics.bundles.tell(None);
                if let Some(incident) = begun {
                    let path = bundles.path(&incident).display().to_string();
                    // A loop that ends takes nothing more, and may wait for this task.
                    let _ = tx.send_timeout(AgentEvent::Bundled { incident, path }, TAKEN_WITHIN).await;
                }
            }
            // Where there is no bundle nothing is proven.
            Ok(Done::Wrote(Ok(false))) => {}
            Ok(Done::Wrote(Err(trouble))) => metrics.bundles.tell(Some(trouble)),
            Err(error) => tracing::error!("a bundle could not be written: {error}"),
        }
    }
}

/// What came of a job.
#[derive(Debug, PartialEq)]
enum Done {
    /// Whether there is a bundle, which was written then, or why it could not be.
    Wrote(Result<bool, String>),
    /// The room there is now.
    Swept(BundleSpace),
}

fn one(bundles: &Bundles, state: &State, keep: &Keep, clock: Clock, job: Job) -> Done {
    let told = |result: Result<bool, BundleError>| {
        result.map_err(|error| {
            tracing::error!("{error}");
            error.to_string()
        })
    };
    match job {
        Job::Create { record, evidence } => {
            // It may have been made before the state was read that says whose it is.
            let record = Record { agent: state.agent().clone(), ..*record };
            Done::Wrote(told(create(bundles, record, &evidence).map(|()| true)))
        }
        Job::Update(incident) => Done::Wrote(told(bundles.update(*incident))),
        Job::Captured(incident) => {
            let id = incident.id.clone();
            let updated = told(captured(bundles, state, *incident));
            if updated.is_ok() {
                // Behind the message's row, which on a slow disk is not written yet: a kill between them would lose
                // the message.
                state.later(move |state| state.delete_reported(&id));
            }
            Done::Wrote(updated)
        }
        Job::MakeRoom(bytes, _waits) => {
            let swept = retention::sweep(bundles, state.agent(), keep, bytes, clock.now());
            for incident in &swept.deleted {
                tracing::info!(incident, "its bundle was deleted: the newer ones need the room");
            }
            Done::Swept(BundleSpace {
                bytes: swept.bytes_left,
                limit: keep.bytes,
                free: room(bundles.root()).map(|r| r.free),
                over: swept.over,
                stuck: swept.stuck.first().map(|(path, why)| format!("{}: {why}", path.display())),
            })
        }
    }
}

/// Brings the bundle of a capture that ended up to date. Where there was no room for its record when it was begun, only
/// the state knows what its files are; one that was deleted stays so.
fn captured(bundles: &Bundles, state: &State, incident: Incident) -> Result<bool, BundleError> {
    if bundles.read(&incident.id).is_none() && bundles.is_begun(&incident.id) {
        // A row that cannot be read is not forgotten either.
        if let Ok(Some(record)) = state.unfinished_incident(&incident.id) {
            bundles.create(&record, b"")?;
        }
    }
    bundles.update(incident)
}

fn create(bundles: &Bundles, mut record: Record, evidence: &Samples) -> Result<(), BundleError> {
    record.incident.bundle = Some(bundles.path(&record.incident.id).display().to_string());
    bundles.create(&record, evidence).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use skewtrap_core::capture::captured::CapturedFile;
    use skewtrap_core::signal::catalog;

    #[test]
    fn each_sample_of_the_evidence_is_a_line() {
        let at = |s: f64| Time::from_epoch_s(s);
        let seen = vec![StoredSeries {
            signal: catalog::RUNNING_REQS,
            rank: Rank::dp(2),
            source: Source::Loads,
            samples: [(at(1.5), 3.0), (at(2.5), 4.25)].into(),
        }];
        let mut written = Vec::new();
        let samples = Samples { catalog: Arc::default(), seen, ..Samples::default() };
        samples.write(&mut written).expect("memory takes it");
        assert!(!samples.is_empty());
        let lines = String::from_utf8(written).expect("text");
        insta::assert_snapshot!(lines, @r#"
        {"rank":{"dp_rank":2},"signal":"running_reqs","source":"loads","t":1.5,"value":3.0}
        {"rank":{"dp_rank":2},"signal":"running_reqs","source":"loads","t":2.5,"value":4.25}
        "#);
    }

    #[test]
    fn a_bundle_that_cannot_be_written_is_told_until_one_can() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = State::in_memory().expect("a state");
        let keep = Keep { count: 9, age: Duration::from_secs(9), bytes: 9 };
        // A file stands where the folder should.
        let root = dir.path().join("incidents");
        std::fs::write(&root, b"").expect("written");
        let bundles = Bundles::at(&root, state.agent().clone());
        let wrote = |job: Job| match one(&bundles, &state, &keep, Clock::start(), job) {
            Done::Wrote(wrote) => wrote,
            swept @ Done::Swept(_) => panic!("{swept:?}"),
        };
        let record = |id: &str| Box::new(crate::act::record_of_a_test(id, 1.0));
        let create = |id: &str| Job::Create { record: record(id), evidence: Samples::default() };
        let update = |id: &str| Job::Update(Box::new(record(id).incident));
        let told = wrote(create("i1")).expect_err("it cannot be written");
        assert!(told.contains("cannot be written") && told.contains("check incident_dir"), "{told}");
        std::fs::remove_file(&root).expect("removed");
        assert_eq!(wrote(update("i1")), Ok(false), "without a bundle nothing is proven");
        assert_eq!(wrote(create("i2")), Ok(true));
        assert_eq!(wrote(update("i2")), Ok(true));
    }

    #[test]
    fn the_record_names_its_bundle_also_once_an_incident_without_a_capture_was_brought_up_to_date() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = State::in_memory().expect("a state");
        let keep = Keep { count: 9, age: Duration::from_secs(9), bytes: 9 };
        let bundles = Bundles::open(dir.path(), state.agent().clone()).expect("a folder");
        let record = Record { agent: state.agent().clone(), ..crate::act::record_of_a_test("i1", 1.0) };
        let named = || bundles.read("i1").expect("a record").incident.bundle;
        let path = bundles.path("i1").display().to_string();
        let create = Job::Create { record: Box::new(record.clone()), evidence: Samples::default() };
        let _ = one(&bundles, &state, &keep, Clock::start(), create);
        assert_eq!(named().as_deref(), Some(&*path));
        let update = Job::Update(Box::new(record.incident));
        let _ = one(&bundles, &state, &keep, Clock::start(), update);
        assert_eq!(named().as_deref(), Some(&*path), "the core does not know of it yet");
    }

    #[tokio::test]
    async fn a_capture_is_forgotten_only_once_its_message_is_in_the_outbox() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = State::in_memory().expect("a state");
        let bundles = Bundles::open(dir.path(), state.agent().clone()).expect("a folder");
        let record = Record { agent: state.agent().clone(), ..crate::act::record_of_a_test("i1", 1.0) };
        state.save_incident(&record).expect("written");
        let keep = Keep { count: 9, age: Duration::from_secs(9), bytes: 9 };
        let captured = || Job::Captured(Box::new(record.incident.clone()));
        let rows = || state.unfinished_incidents().expect("readable").len();
        // Its message's row waits for a slow disk.
        assert_eq!(one(&bundles, &state, &keep, Clock::start(), captured()), Done::Wrote(Ok(false)));
        assert_eq!(rows(), 1, "a kill now would lose the message");
        state.later(|state| state.reported("i1"));
        assert_eq!(one(&bundles, &state, &keep, Clock::start(), captured()), Done::Wrote(Ok(false)));
        assert_eq!(rows(), 0);
    }

    #[test]
    fn a_capture_whose_record_is_in_no_bundle_is_written_from_the_state_before_that_forgets_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = State::in_memory().expect("a state");
        let bundles = Bundles::open(dir.path(), state.agent().clone()).expect("a folder");
        let keep = Keep { count: 9, age: std::time::Duration::from_secs(9), bytes: 9 };
        for (id, left) in [("i1", "i1/traces"), ("i2", ".i2.partial")] {
            let record = Record { agent: state.agent().clone(), ..crate::act::record_of_a_test(id, 1.0) };
            let file = CapturedFile { path: "traces/a.trace.json.gz".into(), ..CapturedFile::default() };
            let record = Record { files: vec![file], ..record };
            state.save_incident(&record).expect("written");
            state.reported(id).expect("written");
            // The disk had room for the files, and none for the record.
            std::fs::create_dir_all(dir.path().join(left)).expect("a folder");
            let job = Job::Captured(Box::new(record.incident.clone()));
            assert_eq!(one(&bundles, &state, &keep, Clock::start(), job), Done::Wrote(Ok(true)), "{id}");
            assert_eq!(bundles.read(id).expect("a record").files, record.files, "{id}");
        }
        state.settle(std::time::Duration::from_secs(5));
        assert_eq!(state.unfinished_incidents().expect("readable"), []);
    }

    #[test]
    fn a_capture_whose_bundle_cannot_be_read_is_not_forgotten_and_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = State::in_memory().expect("a state");
        let bundles = Bundles::open(dir.path(), state.agent().clone()).expect("a folder");
        let record = Record { agent: state.agent().clone(), ..crate::act::record_of_a_test("i1", 1.0) };
        state.save_incident(&record).expect("written");
        state.reported("i1").expect("written");
        bundles.create(&record, b"").expect("written");
        let file = bundles.path("i1").join("incident.json");
        let keep = Keep { count: 9, age: std::time::Duration::from_secs(9), bytes: 9 };
        let captured = || {
            let job = Job::Captured(Box::new(record.incident.clone()));
            one(&bundles, &state, &keep, Clock::start(), job)
        };
        // Read as a disk that fails is: with an error that is not that nothing is there.
        std::fs::remove_file(&file).expect("removed");
        std::fs::create_dir(&file).expect("a folder");
        assert!(matches!(captured(), Done::Wrote(Err(_))));
        assert_eq!(state.unfinished_incidents().expect("readable").len(), 1, "the next agent finds it");
        bundles.create(&record, b"").expect_err("what it may hold is not written over");
        std::fs::remove_dir(&file).expect("removed");
        std::fs::write(&file, b"{").expect("written");
        assert_eq!(captured(), Done::Wrote(Ok(true)), "it was cut off, and the state knows it all");
        assert_eq!(std::fs::read(file.with_extension("json.unreadable")).expect("kept"), b"{");
        state.settle(std::time::Duration::from_secs(5));
        assert_eq!(state.unfinished_incidents().expect("readable").len(), 0);
    }
}
