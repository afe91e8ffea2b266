//! What the loop publishes, and how the handlers ask for it.
//!
//! Whether the loop lives and which servers have given no sample is published every second: it is small.
//! Everything else grows with the servers and is built only when somebody asks, of the servers that are asked
//! about, and then serves all who ask the same within a second.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use skewtrap_core::status::{History, Scope, Status};
use skewtrap_trace::time::Time;

/// What was built serves whoever asks so soon after.
pub const FRESH: Duration = Duration::from_secs(1);
/// How long a handler waits for the loop; then it shows what was built last.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is published whether anybody asks or not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vitals {
    /// When the loop was last seen to live.
    pub at: Time,
    /// The servers that have given no sample yet.
    pub unheard: Arc<[Arc<str>]>,
    /// The servers that do not answer, and since when.
    pub unanswered: Arc<[(Arc<str>, Time)]>,
    /// The servers with whose answers the agent is behind.
    pub behind: Arc<[Arc<str>]>,
}

/// Of the parts of the status that were asked for, so many are kept for who asks next.
const KEPT: usize = 16;

/// Which signal's lines of a history are wanted, beside the servers.
pub type HistoryScope = (Scope, Option<Arc<str>>);

/// The loop's end: it is told when something is wanted, and publishes it.
#[derive(Debug)]
pub struct Publisher {
    vitals: watch::Sender<Vitals>,
    status: PartCache<Scope, Arc<Status>>,
    history: PartCache<HistoryScope, Arc<Vec<History>>>,
}

/// The handlers' end.
#[derive(Clone, Debug)]
pub struct Published {
    vitals: watch::Receiver<Vitals>,
    status: Reader<Scope, Arc<Status>>,
    history: Reader<HistoryScope, Arc<Vec<History>>>,
}

/// What somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// [`Publisher::publish`] is due.
    Status(Scope),
    /// [`Publisher::publish_history`] is due.
    History(HistoryScope),
}

/// A publisher of which nobody has asked anything, and its readers' end.
pub fn publisher(vitals: Vitals) -> (Publisher, Published) {
    let (vitals, seen) = watch::channel(vitals);
    let ((status, statuses), (history, histories)) = (part_cache(), part_cache());
    (Publisher { vitals, status, history }, Published { vitals: seen, status: statuses, history: histories })
}

impl Publisher {
    /// Waits until somebody asks for something that is older than [`FRESH`].
    pub async fn wanted(&mut self) -> Wanted {
        tokio::select! {
            scope = self.status.wanted() => Wanted::Status(scope),
            scope = self.history.wanted() => Wanted::History(scope),
        }
    }

    /// The loop lives.
    pub fn publish_vitals(&self, vitals: Vitals) {
        self.vitals.send_replace(vitals);
    }

    /// Gives a part of the status to all who wait for it.
    pub fn publish(&self, scope: Scope, status: Status) {
        self.status.publish(scope, Arc::new(status));
    }

    /// Something was changed because somebody asked for it: whoever looks now must see it, however young what
    /// was built is.
    pub fn invalidate(&self) {
        self.status.invalidate();
    }

    /// Gives a part of the history to all who wait for it.
    pub fn publish_history(&self, scope: HistoryScope, history: Vec<History>) {
        self.history.publish(scope, Arc::new(history));
    }

    /// Publishes a whole status that stands until it is replaced, for what has no loop: the pulse and the
    /// history are those of the status.
    pub fn publish_fixed(&self, status: Status) {
        let is_unheard =
            |t: &&skewtrap_core::status::TargetStatus| t.sources.iter().all(|s| s.last.is_none());
        let unheard = status.targets.iter().filter(is_unheard).map(|t| t.name.clone()).collect();
        let since = |t: &skewtrap_core::status::TargetStatus| Some((t.name.clone(), t.unanswered_since?));
        let unanswered = status.targets.iter().filter_map(since).collect();
        let behind = status.targets.iter().filter(|t| t.is_behind()).map(|t| t.name.clone()).collect();
        self.publish_vitals(Vitals { at: status.at, unheard, unanswered, behind });
        let history = status.history.clone();
        let names: Vec<Arc<str>> = status.targets.iter().map(|target| target.name.clone()).collect();
        self.history.publish_fixed(move |(scope, only)| {
            Arc::new(history_part(&history, &names, scope, only.as_deref()))
        });
        self.status.publish_fixed(move |scope| Arc::new(status.part(scope)));
    }
}

fn history_part(history: &[History], names: &[Arc<str>], scope: &Scope, only: Option<&str>) -> Vec<History> {
    let asked = &names[scope.places(names.iter())];
    let mut part = history.to_vec();
    for one in &mut part {
        let is_wanted = only.is_none_or(|only| *one.signal == *only);
        one.lines.retain(|line| is_wanted && asked.contains(&line.target));
    }
    part
}

impl Published {
    /// Whether the loop lives, and what has no sample.
    pub fn vitals(&self) -> Vitals {
        self.vitals.borrow().clone()
    }

    /// A part of the status, at most [`FRESH`] old unless the loop hangs.
    pub async fn status(&self, scope: Scope) -> Arc<Status> {
        self.status.read(scope).await
    }

    /// The last minutes of what the page draws, at most [`FRESH`] old unless the loop hangs.
    pub async fn history(&self, scope: HistoryScope) -> Arc<Vec<History>> {
        self.history.read(scope).await
    }
}

/// Something of which parts are built when they are asked for.
#[derive(Debug)]
struct PartCache<K, T> {
    asked: mpsc::Receiver<K>,
    cached: watch::Sender<CachedParts<K, T>>,
}

#[derive(Debug)]
struct Reader<K, T> {
    ask: mpsc::Sender<K>,
    cached: watch::Receiver<CachedParts<K, T>>,
}

impl<K, T> Clone for Reader<K, T> {
    fn clone(&self) -> Self {
        Self { ask: self.ask.clone(), cached: self.cached.clone() }
    }
}

/// Makes a part, for ever.
type Standing<K, T> = Box<dyn Fn(&K) -> T + Send + Sync>;

/// What was built last.
struct CachedParts<K, T> {
    /// Each with when it was built; `None` where it is known to be out of date.
    parts: BTreeMap<K, (T, Option<Instant>)>,
    standing: Option<Standing<K, T>>,
}

impl<K, T> std::fmt::Debug for CachedParts<K, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CachedParts").field("parts", &self.parts.len()).finish_non_exhaustive()
    }
}

impl<K: Ord, T: Clone> CachedParts<K, T> {
    /// A part that serves whoever asks now.
    fn fresh(&self, key: &K) -> Option<T> {
        let standing = self.standing.as_ref().map(|standing| standing(key));
        let built = || {
            self.parts
                .get(key)
                .filter(|(_, at)| at.is_some_and(|at| at.elapsed() < FRESH))
                .map(|(part, _)| part.clone())
        };
        standing.or_else(built)
    }
}

fn part_cache<K, T>() -> (PartCache<K, T>, Reader<K, T>) {
    let (cached, seen) = watch::channel(CachedParts { parts: BTreeMap::new(), standing: None });
    let (ask, asked) = mpsc::channel(KEPT);
    (PartCache { asked, cached }, Reader { ask, cached: seen })
}

impl<K: Ord + Clone, T: Clone> PartCache<K, T> {
    async fn wanted(&mut self) -> K {
        loop {
            // Readers are there as long as the loop.
            let Some(key) = self.asked.recv().await else { return std::future::pending().await };
            // Several may have asked while it was built for the first of them.
            if self.cached.borrow().fresh(&key).is_none() {
                return key;
            }
        }
    }

    fn publish(&self, key: K, part: T) {
        self.cached.send_modify(|cached| {
            while cached.parts.len() >= KEPT && !cached.parts.contains_key(&key) {
                let oldest = cached.parts.iter().min_by_key(|(_, (_, at))| *at).map(|(key, _)| key.clone());
                let Some(oldest) = oldest else { break };
                cached.parts.remove(&oldest);
            }
            cached.parts.insert(key, (part, Some(Instant::now())));
        });
    }

    fn invalidate(&self) {
        self.cached.send_modify(|cached| cached.parts.values_mut().for_each(|(_, at)| *at = None));
    }

    fn publish_fixed(&self, part: impl Fn(&K) -> T + Send + Sync + 'static) {
        self.cached.send_modify(|cached| cached.standing = Some(Box::new(part)));
    }
}

impl<K: Ord + Clone, T: Clone + Default> Reader<K, T> {
    async fn read(&self, key: K) -> T {
        let mut cached = self.cached.clone();
        if let Some(part) = cached.borrow_and_update().fresh(&key) {
            return part;
        }
        let building = async {
            // The loop is gone only when the agent ends.
            let _ = self.ask.send(key.clone()).await;
            while cached.changed().await.is_ok() {
                if let Some(part) = cached.borrow_and_update().fresh(&key) {
                    return Some(part);
                }
            }
            None
        };
        // A loop that hangs or has ended: what was built last is shown, and says when it was true.
        let built = timeout(PATIENCE, building).await.ok().flatten();
        built.unwrap_or_else(|| {
            self.cached.borrow().parts.get(&key).map(|(part, _)| part.clone()).unwrap_or_default()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A loop that numbers what it builds in the status's version.
    fn building(mut publisher: Publisher) -> Arc<AtomicU32> {
        let built = Arc::new(AtomicU32::new(0));
        let count = built.clone();
        tokio::spawn(async move {
            loop {
                match publisher.wanted().await {
                    Wanted::Status(scope) => {
                        let number = count.fetch_add(1, Ordering::Relaxed) + 1;
                        let version = number.to_string().into();
                        publisher.publish(scope, Status { version, ..Status::default() });
                    }
                    Wanted::History(scope) => publisher.publish_history(scope, Vec::new()),
                }
            }
        });
        built
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_built_until_somebody_asks_and_then_once_a_second_for_all() {
        let (publisher, published) = publisher(Vitals::default());
        let built = building(publisher);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(built.load(Ordering::Relaxed), 0, "nobody has asked");
        for second in 1..=3 {
            let asking = (0..50).map(|_| {
                let published = published.clone();
                tokio::spawn(async move { published.status(Scope::ALL).await.version.to_string() })
            });
            for asked in asking.collect::<Vec<_>>() {
                assert_eq!(asked.await.expect("an answer"), second.to_string());
            }
            assert_eq!(built.load(Ordering::Relaxed), second);
            tokio::time::sleep(FRESH).await;
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(built.load(Ordering::Relaxed), 3, "nobody has asked again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_changed_for_somebody_is_seen_at_once() {
        let (mut publisher, published) = publisher(Vitals::default());
        let status = |version: &str| Status { version: version.into(), ..Status::default() };
        publisher.publish(Scope::ALL, status("before"));
        assert_eq!(&*published.status(Scope::ALL).await.version, "before");
        publisher.invalidate();
        let asking = tokio::spawn(async move { published.status(Scope::ALL).await.version.to_string() });
        assert_eq!(publisher.wanted().await, Wanted::Status(Scope::ALL));
        publisher.publish(Scope::ALL, status("after"));
        assert_eq!(asking.await.expect("an answer"), "after");
    }

    #[tokio::test(start_paused = true)]
    async fn each_part_is_built_for_itself_and_few_are_kept() {
        let (publisher, published) = publisher(Vitals::default());
        let cached = published.status.clone();
        let built = building(publisher);
        let part = |limit| Scope { limit, ..Scope::ALL };
        for limit in 0..100 {
            published.status(part(limit)).await;
        }
        let again = published.status(part(99)).await;
        assert_eq!((&*again.version, built.load(Ordering::Relaxed)), ("100", 100));
        assert_eq!(cached.cached.borrow().parts.len(), KEPT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_hangs_holds_nobody_up_for_long() {
        let (publisher, published) = publisher(Vitals::default());
        publisher.publish(Scope::ALL, Status { version: "old".into(), ..Status::default() });
        tokio::time::sleep(Duration::from_secs(5)).await;
        let asked = Instant::now();
        assert_eq!(&*published.status(Scope::ALL).await.version, "old");
        assert!(asked.elapsed() <= PATIENCE + Duration::from_millis(10), "{:?}", asked.elapsed());
    }
}
