//! Brings the bundles of ended incidents into the store, in the background. It reads the folder of the
//! bundles again and again, so a kill costs nothing: what is not marked as uploaded is looked at again.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::compare::{self, CompareRequest};
use super::plan::host;
use super::supervise::{Supervisor, TaskPlacement};
use crate::act::bundle::{Bundles, numbered};
use crate::act::retention;
use crate::clock::Clock;
use crate::config::store::StoreConfig;
use crate::http::client;
use crate::serve::metrics::Metrics;
use skewtrap_core::fleet::{RECORD, Share, is_ended};
use skewtrap_core::incident::{CaptureOutcome, Record};
use skewtrap_fleet::upload::Destination;
use skewtrap_fleet::{Store, StoreError};
use skewtrap_trace::report;
use skewtrap_trace::time::Time;

/// Between two looks at the folder of the bundles.
const EVERY: Duration = Duration::from_secs(20);
/// The longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// After so many bundles in a row that the store does not take, it is taken to be away.
const MOST_FAILURES: usize = 3;
/// Nothing of an upload has moved for so long: it hangs. The summaries of a large capture are made in less.
const STILL: Duration = Duration::from_secs(300);
/// A captured incident without a verdict is waited for so long after it was resolved.
const PATIENCE_S: f64 = 900.0;

/// How long the disk of a store that is a folder may take to show the folder.
const OPEN_LIMIT: Duration = Duration::from_secs(4);

/// The destination of a configuration. Of a store that is a folder its disk is asked, which may hang: what must go on
/// takes a [`LazyDestination`].
///
/// # Errors
/// The address is none, or no client can be built.
pub fn destination(config: &StoreConfig) -> anyhow::Result<Destination> {
    let store = open(&config.address)?;
    let share = Share { raw: config.raw, secrets: config.secrets };
    Ok(Destination { store, pool: config.pool.clone(), host: host(), share, rate: config.rate })
}

/// The store at an address, with the credentials of the environment.
///
/// # Errors
/// The address is none, or no client can be built.
pub(super) fn open(address: &str) -> anyhow::Result<Store> {
    let variables =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    Ok(Store::open(address, client::client(None)?, variables)?)
}

/// The destination of a configuration, opened when it is first needed and not again; clones share it.
#[derive(Clone, Debug)]
pub struct LazyDestination {
    config: Arc<StoreConfig>,
    opened: Arc<OnceLock<Destination>>,
    /// Opens it. While its disk hangs it is this one that is waited for: each new one would keep a thread.
    opening: Arc<Mutex<Option<JoinHandle<anyhow::Result<Destination>>>>>,
}

impl LazyDestination {
    /// That of a configuration.
    pub fn new(config: StoreConfig) -> Self {
        Self { config: Arc::new(config), opened: Arc::default(), opening: Arc::default() }
    }

    /// What it was made of.
    pub fn config(&self) -> &StoreConfig {
        &self.config
    }

    /// The destination.
    ///
    /// # Errors
    /// As for [`destination`], or its disk does not answer in time.
    pub async fn get(&self) -> anyhow::Result<Destination> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened.clone());
        }
        let Ok(opened) = tokio::time::timeout(OPEN_LIMIT, self.open()).await else {
            let (store, limit) = (&self.config.address, OPEN_LIMIT.as_secs());
            bail!(
                "{store}: the disk does not answer within {limit} s; look whether what is mounted there hangs"
            );
        };
        opened
    }

    async fn open(&self) -> anyhow::Result<Destination> {
        let mut opening = self.opening.lock().await;
        if let Some(opened) = self.opened.get() {
            return Ok(opened.clone());
        }
        let config = self.config.clone();
        let task = opening.get_or_insert_with(|| crate::world::blocking(move || destination(&config)));
        let opened = task.await;
        *opening = None;
        let opened = opened??;
        Ok(self.opened.get_or_init(|| opened).clone())
    }
}

/// Starts the uploads, if a store is configured.
pub(super) fn start(
    to: Option<LazyDestination>,
    bundles: &Bundles,
    clock: Clock,
    metrics: &Arc<Metrics>,
    supervisor: &Supervisor,
) {
    let Some(to) = to else { return };
    let (bundles, metrics, cancel) = (bundles.clone(), metrics.clone(), supervisor.cancel());
    supervisor.keep("upload", TaskPlacement::Background, move || {
        run(to.clone(), bundles.clone(), clock, metrics.clone(), cancel.clone())
    });
}

async fn run(
    to: LazyDestination,
    bundles: Bundles,
    clock: Clock,
    metrics: Arc<Metrics>,
    cancel: CancellationToken,
) -> bool {
    let (seen, refused) = Default::default();
    let mut uploads = Uploads { to: to.clone(), bundles, clock, seen, refused };
    let mut pause = EVERY;
    let mut told = None;
    let still = STILL + Store::part_takes(to.config().rate);
    let parts = || to.opened.get().map_or(0, |to| to.store.parts());
    loop {
        let hung = AtomicBool::new(false);
        let hangs = |since: Duration| {
            let s = since.as_secs();
            let why = format!(
                "incidents are not uploaded: for {s} s nothing has come back from the store or from the disk of incident_dir"
            );
            error!("{why}; look whether one of them hangs. It is waited for");
            metrics.store.tell(Some(why));
            hung.store(true, Ordering::Relaxed);
        };
        let went = tokio::select! {
            () = cancel.cancelled() => return true,
            went = watched(uploads.round(), parts, still, hangs) => went,
        };
        let RoundEnd { is_away, trouble } =
            went.unwrap_or_else(|e| RoundEnd { is_away: true, trouble: Some(format!("{e:#}")) });
        let trouble = trouble.map(|why| format!("incidents are not uploaded: {why}"));
        pause = if is_away { (pause * 2).min(LONGEST_PAUSE) } else { EVERY };
        if trouble != told || hung.load(Ordering::Relaxed) {
            match &trouble {
                Some(why) => error!("{why}; they are kept here, and it is tried again"),
                None => info!("incidents are uploaded again"),
            }
            told.clone_from(&trouble);
        }
        metrics.store.tell(trouble);
        tokio::select! {
            () = cancel.cancelled() => return true,
            // Equal jitter: agents that lost their store together do not come back together.
            () = tokio::time::sleep(pause / 2 + pause.mul_f64(fastrand::f64() / 2.0)) => {}
        }
    }
}

/// Waits for `round`, and says once that it hangs, when `parts` has stood still for so long.
async fn watched<T>(
    round: impl Future<Output = T>,
    parts: impl Fn() -> u64,
    still: Duration,
    hangs: impl FnOnce(Duration),
) -> T {
    let mut round = std::pin::pin!(round);
    let (mut known, mut moved, mut hangs) = (parts(), Instant::now(), Some(hangs));
    loop {
        tokio::select! {
            biased;
            went = &mut round => return went,
            () = tokio::time::sleep(EVERY) => {}
        }
        let now = parts();
        if std::mem::replace(&mut known, now) != now {
            moved = Instant::now();
        } else if moved.elapsed() >= still
            && let Some(hangs) = hangs.take()
        {
            hangs(moved.elapsed());
        }
    }
}

struct Uploads {
    to: LazyDestination,
    bundles: Bundles,
    clock: Clock,
    /// Records that need not be read again, by their bundle, with the time of their last change.
    seen: HashMap<PathBuf, SystemTime>,
    /// Bundles that the store did not take.
    refused: BTreeMap<PathBuf, RefusedBundle>,
}

/// A bundle that the store did not take: it alone is tried again later and later.
struct RefusedBundle {
    again_at: Instant,
    pause: Duration,
    why: String,
}

struct RoundEnd {
    /// Whether the store is away, so that nothing is asked of it for longer.
    is_away: bool,
    /// Why something is not uploaded.
    trouble: Option<String>,
}

/// A bundle to be uploaded.
struct Waiting {
    bundle: PathBuf,
    record: Record,
    bytes: Vec<u8>,
    changed: SystemTime,
}

impl Uploads {
    /// Uploads what has ended since the round before. One bundle that cannot be read, or that the store does not take,
    /// keeps no other, now or later.
    async fn round(&mut self) -> anyhow::Result<RoundEnd> {
        let to = self.to.get().await?;
        let mut in_a_row = 0;
        let mut all = self.waiting(&to).await?;
        self.refused.retain(|bundle, _| all.iter().any(|waiting| waiting.bundle == *bundle));
        let now = Instant::now();
        all.retain(|waiting| self.refused.get(&waiting.bundle).is_none_or(|refused| refused.again_at <= now));
        // They wait until the others are there.
        all.sort_by_key(|waiting| self.refused.contains_key(&waiting.bundle));
        for waiting in all {
            // Nothing else would be taken now: the rest is not sent in vain.
            if in_a_row == MOST_FAILURES {
                break;
            }
            let Waiting { bundle, record, bytes, changed } = waiting;
            let (of_bundle, of_record) = (bundle.clone(), record.clone());
            let prepared = crate::world::blocking(move || prepare(&of_bundle, &of_record)).await;
            if let Err(why) = prepared.map_err(anyhow::Error::from).flatten() {
                warn!(incident = %record.incident.id, "uploaded without summaries of its ranks: {why:#}");
            }
            match to.upload(&bundle, &record, &bytes).await {
                Ok(mark) => {
                    info!(incident = %record.incident.id, objects = mark.objects.len(), "uploaded to {}", mark.store);
                    self.refused.remove(&bundle);
                    self.seen.insert(bundle, changed);
                    in_a_row = 0;
                }
                Err(error) => {
                    in_a_row += usize::from(!matches!(error, StoreError::File { .. }));
                    self.refuse(bundle, format!("{}: {error}", record.incident.id));
                }
            }
        }
        self.forget_old(&to).await?;
        let trouble = self.refused.values().next().map(|refused| refused.why.clone());
        Ok(RoundEnd { is_away: in_a_row == MOST_FAILURES, trouble })
    }

    fn refuse(&mut self, bundle: PathBuf, why: String) {
        let before = self.refused.get(&bundle).map(|refused| refused.pause);
        let pause = before.map_or(EVERY, |before| (before * 2).min(LONGEST_PAUSE));
        let again_at = Instant::now() + pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.refused.insert(bundle, RefusedBundle { again_at, pause, why });
    }

    /// The bundles of this agent that have ended and are not in the store as they are, the oldest first.
    async fn waiting(&mut self, to: &Destination) -> anyhow::Result<Vec<Waiting>> {
        let (bundles, now, to) = (self.bundles.clone(), self.clock.now(), to.clone());
        let seen = std::mem::take(&mut self.seen);
        let (seen, waiting) = crate::world::blocking(move || look(&bundles, now, &to, seen)).await?;
        self.seen = seen;
        Ok(waiting)
    }

    /// Deletes uploaded bundles that are older than `upload.keep_local`.
    async fn forget_old(&mut self, to: &Destination) -> anyhow::Result<()> {
        let Some(age) = self.to.config().keep_local else { return Ok(()) };
        let (bundles, until, to) = (self.bundles.clone(), self.clock.now() - age, to.clone());
        let uploaded: Vec<PathBuf> = self.seen.keys().cloned().collect();
        let deleted = crate::world::blocking(move || {
            let is_old = |bundle: &PathBuf| {
                let bytes = fs::read(bundle.join(RECORD)).unwrap_or_default();
                let record: Option<Record> = serde_json::from_slice(&bytes).ok();
                record.is_some_and(|r| r.incident.fired_at < until)
                    && to.has(bundle, &bytes)
                    && !bundle.join("pinned").exists()
            };
            uploaded
                .into_iter()
                .filter(is_old)
                .filter(|b| retention::remove_uploaded(&bundles, b))
                .collect::<Vec<_>>()
        });
        for bundle in deleted.await? {
            info!(bundle = %bundle.display(), "deleted here: it is in the store, and older than upload.keep_local");
            self.seen.remove(&bundle);
        }
        Ok(())
    }
}

fn look(
    bundles: &Bundles,
    now: Time,
    to: &Destination,
    before: HashMap<PathBuf, SystemTime>,
) -> (HashMap<PathBuf, SystemTime>, Vec<Waiting>) {
    let entries = fs::read_dir(bundles.root()).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> =
        entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect();
    folders.sort();
    let (mut seen, mut waiting) = (HashMap::new(), Vec::new());
    for bundle in folders {
        let Some(id) = bundle.file_name().and_then(|n| n.to_str()).filter(|n| !n.starts_with('.')) else {
            continue;
        };
        let Ok(changed) = fs::metadata(bundle.join(RECORD)).and_then(|m| m.modified()) else { continue };
        if before.get(&bundle) == Some(&changed) {
            seen.insert(bundle, changed);
            continue;
        }
        let Some((record, bytes)) = bundles.read_with_bytes(id) else { continue };
        if !is_ended(&record, now, PATIENCE_S) {
            continue;
        }
        if to.has(&bundle, &bytes) {
            seen.insert(bundle, changed);
        } else {
            waiting.push(Waiting { bundle, record, bytes, changed });
        }
    }
    (seen, waiting)
}

/// Writes the summaries and the rows of kernels of each capture that has files, where they are not there yet.
fn prepare(bundle: &Path, record: &Record) -> anyhow::Result<()> {
    for (window, outcome) in (1..).zip(record.incident.captures()) {
        let summaries = bundle.join(numbered("summaries", window));
        let CaptureOutcome::Done(captured) = outcome else { continue };
        let paths = compare::ranks_of(bundle, window, &captured.files);
        if summaries.exists() || paths.is_empty() {
            continue;
        }
        let request = CompareRequest { paths, ..CompareRequest::default() };
        let compared = compare::run(&request, &|_| {})?;
        let rows = bundle.join(numbered("kernels.csv", window));
        let mut out = std::io::BufWriter::new(
            fs::File::create(&rows).with_context(|| format!("cannot create {}", rows.display()))?,
        );
        report::write_csv(&mut out, &compared.input.profiles)?;
        std::io::Write::flush(&mut out)?;
        // Under its name when it is whole: the name says that nothing is left to do.
        let partial = bundle.join(format!(".{}.partial", numbered("summaries", window)));
        compared.write_summaries(&partial)?;
        fs::rename(&partial, &summaries).with_context(|| format!("cannot create {}", summaries.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::act::state::State;

    /// The bundle of an incident that is over.
    fn bundle(bundles: &Bundles, state: &State, id: &str) {
        let mut record = crate::act::record_of_a_test(id, 1.0);
        record.agent = state.agent().clone();
        record.incident.resolve(record.incident.fired_at);
        bundles.create(&record, b"").expect("written");
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_hangs_is_told_once_and_one_that_is_only_slow_is_not() {
        let (still, told) = (Duration::from_secs(300), std::cell::RefCell::new(Vec::new()));
        let limit = Duration::from_secs(3600);
        let hangs = |since: Duration| told.borrow_mut().push(since.as_secs());
        let hung = watched(std::future::pending::<()>(), || 7, still, hangs);
        tokio::time::timeout(limit, hung).await.expect_err("it never ends");
        assert_eq!(told.take(), [300]);
        let begun = Instant::now();
        let slow = watched(std::future::pending::<()>(), || begun.elapsed().as_secs() / 250, still, hangs);
        tokio::time::timeout(limit, slow).await.expect_err("it never ends");
        assert_eq!(told.take(), [0_u64; 0]);
        assert_eq!(watched(async { 3 }, || 0, still, |_| ()).await, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_incident_that_the_store_never_takes_keeps_later_ones_no_longer_than_usual() {
        let dir = tempfile::tempdir().expect("a folder");
        let (bucket, state) = (dir.path().join("bucket"), State::in_memory().expect("a state"));
        let bundles = Bundles::open(&dir.path().join("incidents"), state.agent().clone()).expect("a folder");
        bundle(&bundles, &state, "refused");
        let config = StoreConfig::of(&format!("file://{}", bucket.display()), "p");
        let record = |id: &str| {
            let incident = bundles.read(id).expect("there").incident;
            bucket.join(skewtrap_core::fleet::folder_of("p", &incident)).join(RECORD)
        };
        // A folder stands where its record is to be.
        fs::create_dir_all(record("refused").join("in-the-way")).expect("a folder");
        let (metrics, cancel) = (Arc::default(), CancellationToken::new());
        let uploads = run(LazyDestination::new(config), bundles.clone(), Clock::start(), metrics, cancel);
        let uploads = tokio::spawn(uploads);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        bundle(&bundles, &state, "later");
        let (asked, there) = (Instant::now(), record("later"));
        while !there.exists() && asked.elapsed() < Duration::from_secs(3600) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        uploads.abort();
        assert!(asked.elapsed() <= EVERY + Duration::from_secs(2), "{:?}", asked.elapsed());
    }
}
