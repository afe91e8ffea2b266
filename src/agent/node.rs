//! The agent of a node (`skewtrap run --role node`): it watches nothing and opens no window. When a leader of
//! its pool says in the store that a window is open, it looks for the files of that window on its own host,
//! reads each to its end, and brings the summaries of their ranks into the store, so that no trace crosses
//! the network.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::compare::{self, CompareRequest, RankOverrides};
use super::upload::LazyDestination;
use crate::clock::wall_time;
use crate::config::store::StoreConfig;
use crate::observe::artifact::{FoundFile, files_of, inspect};
use skewtrap_core::capture::path_map::PathMap;
use skewtrap_core::capture::verify::rank_among;
use skewtrap_core::fleet::gather::{
    self, NODE_EVERY, NodeFile, NodePresence, NodeReport, VERSION, WindowManifest, mark_of_manifest,
    node_object, report_object, summary_object, windows_folder,
};
use skewtrap_core::fleet::lease::StoreClock;
use skewtrap_fleet::upload::Destination;
use skewtrap_fleet::{Store, StoreError};
use skewtrap_trace::rank::{Rank, RankId};
use skewtrap_trace::summary;
use skewtrap_trace::time::Time;

/// Between two looks at the store, and at the folders of windows that are open.
const EVERY: Duration = Duration::from_secs(2);
/// Manifests of windows that fired more than this before now are not looked for: no clock is so wrong.
const LOOK_BACK: Duration = Duration::from_secs(24 * 3600);
/// The longest pause while the store is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A window's round that takes this long is told: large traces are read to their ends within it.
const LONG_ROUND: Duration = Duration::from_secs(120);

/// What a node agent is told.
#[derive(Clone, Debug)]
pub struct NodePlan {
    /// What this host is called.
    pub name: String,
    /// The store and the pool.
    pub store: StoreConfig,
    /// The paths of servers and ours, by the name of the target.
    pub paths: BTreeMap<String, PathMap>,
    /// A folder of its own, for summaries on their way.
    pub scratch: PathBuf,
}

/// Runs until cancelled.
///
/// # Errors
/// The address of the store is none, or it is a folder that is not there or whose disk does not answer.
pub async fn run(plan: NodePlan, cancel: CancellationToken) -> anyhow::Result<()> {
    let to = Destination { host: plan.name.clone(), ..LazyDestination::new(plan.store.clone()).get().await? };
    info!(
        "node agent of pool {} in {}: it opens no window, and brings summaries of this host's ranks",
        to.pool,
        to.store.address()
    );
    let mut node = Node {
        plan,
        to,
        open: BTreeMap::new(),
        rounds: JoinSet::new(),
        known: BTreeSet::new(),
        troubles: BTreeMap::new(),
        said_at: None,
        clock: None,
    };
    let (mut pause, mut told) = (EVERY, None);
    loop {
        let went = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            went = node.round() => went,
        };
        let trouble = went.err().map(|e| format!("{e:#}"));
        pause = if trouble.is_some() { (pause * 2).min(LONGEST_PAUSE) } else { EVERY };
        if trouble != told {
            match &trouble {
                Some(why) => warn!("the store cannot be asked for windows: {why}; it is tried again"),
                None => info!("the store can be asked for windows again"),
            }
            told = trouble;
        }
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause.mul_f64(0.75 + fastrand::f64() / 2.0)) => {}
        }
    }
}

struct Node {
    plan: NodePlan,
    to: Destination,
    open: BTreeMap<String, OpenWindow>,
    /// What goes on for windows, one round for each.
    rounds: JoinSet<Round>,
    /// Manifests that were read, or never can be.
    known: BTreeSet<String>,
    /// What was told of windows that fail and are tried again, by their marks.
    troubles: BTreeMap<String, String>,
    /// When it said last that it is there.
    said_at: Option<Instant>,
    /// The store's clock beside the wall clock, as it was measured then.
    clock: Option<StoreClock>,
}

/// A window of which files are waited for.
struct OpenWindow {
    until: Instant,
    /// When its last round began.
    begun: Instant,
    /// `None` while a round goes on.
    collection: Option<Collection>,
}

/// A round of a window, and how it went.
type Round = (Collection, anyhow::Result<()>);

/// The files of one window on this host.
struct Collection {
    manifest: WindowManifest,
    seen: BTreeMap<PathBuf, FoundFile>,
    read: BTreeMap<PathBuf, NodeFile>,
    /// Summaries that the store has not taken yet, likewise: reading a trace again would take minutes of a CPU.
    made: BTreeMap<PathBuf, (FoundFile, NodeFile, (RankId, Vec<u8>))>,
    /// The report as it is in the store.
    reported: Option<NodeReport>,
}

impl Node {
    /// One window that fails keeps no other: what is wrong with it is told, and it is tried again.
    ///
    /// # Errors
    /// The store cannot be asked for windows.
    async fn round(&mut self) -> anyhow::Result<()> {
        self.announce_presence().await?;
        let mut went = self.look_for_windows().await?;
        went.extend(self.collect().await);
        self.tell(went);
        let now = Instant::now();
        self.open.retain(|mark, window| {
            let is_open = window.until > now;
            if !is_open {
                let files = window.collection.as_ref().map(|collection| collection.read.len());
                info!(window = %mark, files, "no file of this window is waited for any more");
            }
            is_open
        });
        Ok(())
    }

    /// A round for each window, all at the same time: the disk of one may hang, or its traces be large. What is not
    /// over soon goes on beside the next rounds of the others.
    async fn collect(&mut self) -> Vec<(String, anyhow::Result<()>)> {
        for (mark, window) in &mut self.open {
            let Some(mut collection) = window.collection.take() else { continue };
            window.begun = Instant::now();
            let (to, paths) = (self.to.clone(), self.plan.paths.clone());
            let scratch = self.plan.scratch.join(mark);
            self.rounds.spawn(async move {
                let went = collection.round(&to, &paths, &scratch).await;
                (collection, went)
            });
        }
        let (until, mut went) = (Instant::now() + EVERY, Vec::new());
        while let Ok(Some(ended)) = tokio::time::timeout_at(until, self.rounds.join_next()).await {
            let (collection, how) = match ended {
                Ok(ended) => ended,
                Err(failed) => match failed.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => continue,
                },
            };
            let mark = collection.manifest.mark.clone();
            if let Some(window) = self.open.get_mut(&mark) {
                window.collection = Some(collection);
            }
            went.push((mark, how));
        }
        let hung = self.open.iter().filter(|(_, window)| window.collection.is_none());
        let hung = hung.filter(|(_, window)| window.begun.elapsed() >= LONG_ROUND);
        went.extend(hung.map(|(mark, _)| {
            let (why, s) = ("its folder on this host, or the store, has not answered", LONG_ROUND.as_secs());
            (mark.clone(), Err(anyhow::anyhow!("{why} for {s} s, or its traces are very large")))
        }));
        went
    }

    async fn announce_presence(&mut self) -> anyhow::Result<()> {
        if self.said_at.is_some_and(|at| at.elapsed() < NODE_EVERY) {
            return Ok(());
        }
        let written_by = env!("CARGO_PKG_VERSION").to_owned();
        let presence = NodePresence { reads: VERSION, host: self.to.host.clone(), written_by };
        let name = node_object(&self.to.pool, &self.to.host);
        let clock = self.to.store.stamp(&name, serde_json::to_vec(&presence)?, wall_time).await?;
        if let (None, Some(complaint)) = (self.said_at, clock.complaint()) {
            warn!("{complaint}");
        }
        (self.said_at, self.clock) = (Some(Instant::now()), Some(clock));
        Ok(())
    }

    /// Says what is wrong with windows, once as long as it is the same.
    fn tell(&mut self, went: Vec<(String, anyhow::Result<()>)>) {
        let before = std::mem::take(&mut self.troubles);
        // Of a round that goes on nothing new is known.
        let under_way = |mark: &str| self.open.get(mark).is_some_and(|window| window.collection.is_none());
        self.troubles =
            before.iter().filter(|(mark, _)| under_way(mark)).map(|(m, w)| (m.clone(), w.clone())).collect();
        for (mark, trouble) in went.into_iter().filter_map(|(mark, went)| Some((mark, went.err()?))) {
            let why = format!("{trouble:#}");
            if before.get(&mark) != Some(&why) {
                warn!(window = %mark, "what this host has of a window cannot be brought: {why}; it is tried again");
            }
            self.troubles.insert(mark, why);
        }
    }

    /// Takes up the windows whose manifests have come, and gives how each went.
    async fn look_for_windows(&mut self) -> anyhow::Result<Vec<(String, anyhow::Result<()>)>> {
        let folder = windows_folder(&self.to.pool);
        // Marks begin with the time of the incident: `20261124T034845Z-...`.
        let since = mark_begins(wall_time() - LOOK_BACK);
        let names = self.to.store.list_after(&folder, &format!("{folder}/{since}")).await?;
        self.known.retain(|known| names.binary_search(known).is_ok());
        let new = names.into_iter().filter(|n| mark_of_manifest(n).is_some() && !self.known.contains(n));
        let mut all = Vec::new();
        for name in new.collect::<Vec<_>>() {
            let went = self.take_up(&name).await;
            all.push((mark_of_manifest(&name).unwrap_or_default().to_owned(), went));
            if all.last().is_some_and(|(_, went)| went.is_ok()) {
                self.known.insert(name);
            }
        }
        Ok(all)
    }

    async fn take_up(&mut self, name: &str) -> anyhow::Result<()> {
        let found = match self.to.store.get_stamped(name).await {
            // It gets no smaller.
            Err(error @ StoreError::TooLarge { .. }) => {
                tell_unreadable(name, &error.to_string());
                return Ok(());
            }
            found => found?,
        };
        let Some((bytes, stamped_at)) = found else { return Ok(()) };
        let age = self.clock.map_or(Duration::ZERO, |clock| clock.age_at_most(stamped_at, wall_time()));
        let manifest = match WindowManifest::read(name, &bytes) {
            Ok(manifest) => manifest,
            Err(why) => {
                tell_unreadable(name, &why);
                return Ok(());
            }
        };
        let left = manifest.collect_s - age.as_secs_f64();
        if left <= 0.0 {
            return Ok(());
        }
        info!(window = %manifest.mark, "a window on {} is open, by the agent on {}", manifest.target, manifest.host);
        let until = Instant::now() + Duration::from_secs_f64(left.min(3600.0));
        let (seen, read, made) = Default::default();
        let mark = manifest.mark.clone();
        let collection = Collection { seen, read, made, reported: None, manifest };
        self.open.insert(mark, OpenWindow { until, begun: Instant::now(), collection: Some(collection) });
        Ok(())
    }
}

impl Collection {
    async fn round(
        &mut self,
        to: &Destination,
        paths: &BTreeMap<String, PathMap>,
        scratch: &Path,
    ) -> anyhow::Result<()> {
        let manifest = self.manifest.clone();
        let folder = match paths.get(&manifest.target) {
            Some(paths) => paths.agent_view(&manifest.dir),
            None => PathBuf::from(&manifest.dir),
        };
        let (dir, marks, engine) = (manifest.dir.clone(), manifest.marks.clone(), manifest.engine);
        let found = crate::world::blocking(move || files_of(&folder, &dir, &marks, engine)).await?;
        let mut trouble = None;
        for file in found {
            // One that has not changed since the last look is read.
            let before = self.seen.insert(file.path.clone(), file.clone());
            // One that could not be read has no digest, and is tried again.
            let known = self.read.get(&file.path);
            let is_read = known.is_some_and(|read| read.bytes == file.size && !read.sha256.is_empty());
            if before.as_ref() != Some(&file) || is_read {
                continue;
            }
            match self.bring(&to.store, &to.pool, &file, scratch).await {
                Ok(read) => drop(self.read.insert(file.path, read)),
                // Those behind it may go well.
                Err(error) => trouble = Some(error),
            }
        }
        let report = NodeReport {
            report: gather::VERSION,
            host: to.host.clone(),
            written_by: env!("CARGO_PKG_VERSION").to_owned(),
            files: self.read.values().cloned().collect(),
        };
        if self.reported.as_ref() != Some(&report) {
            let name = report_object(&to.pool, &manifest.mark, &report.host);
            to.store.put(&name, serde_json::to_vec_pretty(&report)?.into()).await?;
            self.reported = Some(report);
        }
        trouble.map_or(Ok(()), Err)
    }

    /// Reads a file to its end, and brings the summary of its rank into the store.
    async fn bring(
        &mut self,
        store: &Store,
        pool: &str,
        found: &FoundFile,
        scratch: &Path,
    ) -> anyhow::Result<NodeFile> {
        let (mut file, summary) = match self.made.remove(&found.path).filter(|(of, ..)| of == found) {
            Some((_, file, summary)) => (file, Some(summary)),
            None => self.summarised(found, scratch).await?,
        };
        if let Some((rank, summary)) = summary {
            let name = summary_object(pool, &self.manifest.mark, &rank.word());
            if let Err(error) = store.put(&name, summary.clone().into()).await {
                self.made.insert(found.path.clone(), (found.clone(), file, (rank, summary)));
                return Err(error.into());
            }
            file.summary = Some(name);
        }
        match &file.why {
            None => info!(window = %self.manifest.mark, "brought the summary of {}", file.file),
            Some(why) => warn!(window = %self.manifest.mark, "{} cannot be brought: {why}", file.file),
        }
        Ok(file)
    }

    /// What a file holds, read to its end, and the summary of its rank.
    async fn summarised(
        &self,
        found: &FoundFile,
        scratch: &Path,
    ) -> Result<(NodeFile, Option<(RankId, Vec<u8>)>), tokio::task::JoinError> {
        let (engine, of, to) = (self.manifest.engine, found.path.clone(), scratch.to_owned());
        let size = found.size;
        let expected = self.manifest.ranks();
        crate::world::blocking(move || {
            let mut file = NodeFile {
                rank: None,
                file: of.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
                bytes: size,
                sha256: String::new(),
                summary: None,
                why: None,
            };
            let artifact = match inspect(&of, engine) {
                Ok(artifact) => artifact,
                // One file that this agent may not read is no reason to bring no other.
                Err(error) => {
                    file.why = Some(format!("cannot read {}: {error}", of.display()));
                    return (file, None);
                }
            };
            let rank = artifact.rank.map(|named| rank_among(engine, &expected, named));
            file = NodeFile {
                rank: rank.map(Rank::labels),
                bytes: artifact.size,
                sha256: artifact.sha256,
                ..file
            };
            if !artifact.whole {
                file.why = Some("it is cut off".into());
                return (file, None);
            }
            match summary_of(&of, rank, &to) {
                Ok((rank, summary)) => {
                    file.rank.get_or_insert_with(|| rank.labels());
                    (file, Some((rank, summary)))
                }
                Err(error) => {
                    file.why = Some(format!("{error:#}"));
                    (file, None)
                }
            }
        })
        .await
    }
}

fn tell_unreadable(name: &str, why: &str) {
    warn!("a window's manifest cannot be read, so its ranks on this host are not brought: {name}: {why}");
}

/// With what the marks of the windows of that second begin: `20261124T034845`.
fn mark_begins(at: Time) -> String {
    at.rfc3339().chars().take_while(|c| *c != '.').filter(|c| !"-:Z".contains(*c)).collect()
}

/// The summary of the rank whose trace that is; `named` is the rank by its file's name, where that says one.
fn summary_of(path: &Path, named: Option<Rank>, scratch: &Path) -> anyhow::Result<(RankId, Vec<u8>)> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let files = named.map(|rank| (name, rank)).into_iter().collect();
    let rank_overrides = RankOverrides { files, ..RankOverrides::default() };
    let request =
        CompareRequest { paths: vec![path.to_owned()], rank_overrides, ..CompareRequest::default() };
    let compared = compare::run(&request, &|_| {})?;
    let rank = *compared.ranks.first().context("it has no rank")?;
    let written = compared.write_summaries(scratch)?;
    let wanted = summary::file_name(rank);
    let path = written.into_iter().find(|p| p.ends_with(&wanted)).context("it has no summary")?;
    let bytes = std::fs::read(&path)?;
    std::fs::remove_file(&path)?;
    Ok((rank, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_begin_with_the_second_of_their_window() {
        assert_eq!(mark_begins(Time::from_epoch_s(1_795_492_121.9)), "20261124T034841");
    }
}
