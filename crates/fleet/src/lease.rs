//! The lease of a pool, in its store or in Kubernetes: what [`skewtrap_core::fleet::lease`] decides is asked of them here.

mod objects;

use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use self::objects::LeaseObjects;
use crate::kubernetes::KubernetesLease;
use crate::store::{Store, StoreError, is_missing_bucket};
use skewtrap_core::fleet::lease::{
    Answer, GiveBack, GiveBackStep, Latest, LeaseState, StoreClock, Take, TakeStep, clock_object,
};
use skewtrap_core::printable::printable;
use skewtrap_trace::time::Time;

/// A store's stamps are whole seconds, at least in its answers.
const RESOLUTION: Duration = Duration::from_secs(1);
/// A folder's are far finer.
const OF_FOLDERS: Duration = Duration::from_millis(10);

/// Where it is.
#[derive(Clone, Debug)]
enum Place {
    Store(LeaseObjects),
    Kubernetes(KubernetesLease),
}

/// The lease of one pool.
#[derive(Clone, Debug)]
pub struct PoolLease {
    place: Place,
    pool: String,
    /// Which agent asks: its id.
    agent: String,
    /// The store's clock as it was measured last.
    clock: Option<StoreClock>,
}

impl PoolLease {
    /// The lease of `pool` in `store`, for the agent of that id.
    pub fn new(store: Store, pool: impl Into<String>, agent: impl Into<String>) -> Self {
        let pool = pool.into();
        let place = Place::Store(LeaseObjects::new(store, &pool));
        Self { place, pool, agent: agent.into(), clock: None }
    }

    /// The lease of a pool that is that one of Kubernetes.
    pub fn in_kubernetes(lease: KubernetesLease) -> Self {
        let (pool, agent) = (String::new(), String::new());
        Self { place: Place::Kubernetes(lease), pool, agent, clock: None }
    }

    /// The store's clock as it was measured last, beside the clock that was given then.
    pub const fn clock(&self) -> Option<StoreClock> {
        self.clock
    }

    /// Goes on with a take from `step` until it is over, or to the next [`TakeStep::Prove`], which is not for the
    /// store to answer. `now` is a steady clock.
    pub async fn take(&mut self, take: &mut Take, mut step: TakeStep, now: impl Fn() -> Time) -> TakeStep {
        loop {
            let answer = match step {
                TakeStep::Read => self.read().await,
                TakeStep::Measure => match self.measure(&now).await {
                    Ok(clock) => Answer::Measured(clock),
                    Err(error) => Answer::Lost(error.to_string()),
                },
                TakeStep::Create { number, state } => self.create(number, &state).await,
                TakeStep::Prove(_) | TakeStep::Taken(_) | TakeStep::Refused(_) => return step,
            };
            step = take.on(answer, now());
        }
    }

    /// Gives the lease back; [`GiveBackStep::Done`] or [`GiveBackStep::Again`].
    pub async fn give_back(&mut self, back: &mut GiveBack) -> GiveBackStep {
        let mut step = back.begin();
        loop {
            let answer = match step {
                GiveBackStep::Read => self.read().await,
                GiveBackStep::Create { number, state } => self.create(number, &state).await,
                GiveBackStep::Done { .. } | GiveBackStep::Again(_) => return step,
            };
            step = back.on(answer);
        }
    }

    /// The newest object of the lease, if there is one.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn latest(&mut self) -> Result<Option<Latest>, StoreError> {
        let latest = match &mut self.place {
            Place::Store(objects) => objects.latest().await?,
            Place::Kubernetes(lease) => lease.latest().await.map_err(StoreError::Kubernetes)?,
        };
        Ok(latest.map(|latest| Latest { state: made_safe(latest.state), ..latest }))
    }

    /// Whether it can be read and could be taken: what is missing to write it is told, and nothing is written. Whether a
    /// store can be written is tried with the store.
    ///
    /// # Errors
    /// It could not.
    pub async fn try_out(&mut self) -> Result<(), StoreError> {
        match &mut self.place {
            Place::Store(objects) => objects.latest().await.map(|_| ()),
            Place::Kubernetes(lease) => lease.try_out().await.map_err(StoreError::Kubernetes),
        }
    }

    async fn read(&mut self) -> Answer {
        match self.latest().await {
            Ok(latest) => Answer::Latest(latest.map(Box::new)),
            Err(error) => Answer::Lost(error.to_string()),
        }
    }

    async fn create(&mut self, number: u64, state: &LeaseState) -> Answer {
        match &mut self.place {
            Place::Store(objects) => objects.create(number, state).await,
            Place::Kubernetes(lease) => lease.create(number, state).await,
        }
    }

    /// Measures the store's clock beside `now`, by a write; that of Kubernetes by an answer's date.
    ///
    /// # Errors
    /// Nothing can be written, or asked.
    pub async fn measure(&mut self, now: impl Fn() -> Time) -> Result<StoreClock, StoreError> {
        let clock = match &self.place {
            Place::Store(objects) => {
                let name = clock_object(&self.pool, &self.agent);
                let content = b"written to measure the clock of the store\n".to_vec();
                objects.store.stamp(&name, content, now).await?
            }
            Place::Kubernetes(lease) => lease.measure(now).await.map_err(StoreError::Kubernetes)?,
        };
        self.clock = Some(clock);
        Ok(clock)
    }
}

impl Store {
    /// Writes an object over the one that is there, and measures the store's clock beside `now` by its stamp.
    ///
    /// # Errors
    /// Nothing can be written.
    pub async fn stamp(
        &self,
        name: &str,
        content: Vec<u8>,
        now: impl Fn() -> Time,
    ) -> Result<StoreClock, StoreError> {
        let path = Path::from(name);
        let sent = now();
        self.objects.put(&path, PutPayload::from(content)).await.map_err(|e| self.failed(&e, name))?;
        let answered = now();
        let found = self.objects.head(&path).await.map_err(|e| self.failed(&e, name))?;
        let resolution = if self.address().starts_with("file:") { OF_FOLDERS } else { RESOLUTION };
        Ok(StoreClock::measured(sent, answered, time_of(found.last_modified), resolution))
    }

    /// The bytes of an object and when the store stamped it, by its clock; `None` where it is not there.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn get_stamped(&self, name: &str) -> Result<Option<(Bytes, Time)>, StoreError> {
        let found = match self.objects.get(&Path::from(name)).await {
            Err(error) if Self::is_not_there(&error) => return Ok(None),
            other => other.map_err(|e| self.failed(&e, name))?,
        };
        let stamped_at = time_of(found.meta.last_modified);
        self.is_read(found.meta.size, name)?;
        let bytes = found.bytes().await.map_err(|e| self.failed(&e, name))?;
        Ok(Some((bytes, stamped_at)))
    }

    /// The names below a folder that come after `after`, sorted.
    ///
    /// # Errors
    /// They cannot be listed.
    pub async fn list_after(&self, folder: &str, after: &str) -> Result<Vec<String>, StoreError> {
        let listed = self.objects.list_with_offset(Some(&Path::from(folder)), &Path::from(after));
        let found = listed.try_collect::<Vec<_>>().await.map_err(|e| self.failed(&e, folder))?;
        let mut names: Vec<String> = found.into_iter().map(|meta| meta.location.to_string()).collect();
        names.sort();
        Ok(names)
    }

    /// Tries what the lease of a pool needs beside [`Self::try_out`]: that a name which is taken is not given twice.
    ///
    /// # Errors
    /// The store gives it twice, or cannot be asked.
    pub async fn try_conditional_put(&self, name: &str) -> Result<(), StoreError> {
        let name = format!(".skewtrap/{name}-once");
        let path = Path::from(&*name);
        let put = || {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            self.objects.put_opts(&path, PutPayload::from_static(b"once\n"), options)
        };
        match put().await {
            Ok(_) | Err(Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(self.failed(&error, &name)),
        }
        let again = put().await;
        self.objects.delete(&path).await.map_err(|e| self.failed(&e, &name))?;
        match again {
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(()),
            Err(error) => Err(self.failed(&error, &name)),
            Ok(_) => Err(StoreError::Failed {
                store: self.address().to_owned(),
                why: "it creates an object although there is one (it ignores If-None-Match), so agents of a pool cannot take turns: use a store with conditional puts, or a pool of one agent".into(),
            }),
        }
    }

    pub(crate) fn is_not_there(error: &Error) -> bool {
        matches!(error, Error::NotFound { source, .. } if !is_missing_bucket(&source.to_string()))
    }
}

/// Names in the lease were written by other hosts, and are shown in messages.
fn made_safe(mut state: LeaseState) -> LeaseState {
    let safe = |text: &mut String| *text = printable(text, 200).into_owned();
    if let Some(open) = &mut state.open {
        [&mut open.host, &mut open.target].into_iter().for_each(safe);
    }
    for window in &mut state.windows {
        [&mut window.host, &mut window.target].into_iter().for_each(safe);
    }
    state
}

fn time_of(stamp: chrono::DateTime<chrono::Utc>) -> Time {
    Time::from_nanos(stamp.timestamp_nanos_opt().unwrap_or_default())
}
