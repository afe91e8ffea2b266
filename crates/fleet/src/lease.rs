//! The lease of a pool, in its store or in Kubernetes: what [`skewtrap_core::fleet::lease`] decides is asked
//! of them here.

mod objects;

use self::objects::LeaseObjects;
use crate::kubernetes::KubernetesLease;
use crate::store::{Store, StoreError};
use skewtrap_core::fleet::lease::{
    Answer, GiveBackStep, Latest, LeaseRequest, LeaseRequestStep, LeaseReturn, LeaseState, StoreClock,
    clock_object,
};
use skewtrap_core::printable::printable;
use skewtrap_trace::time::Time;

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

    /// Goes on with a take from `step` until it is over, or to the next [`LeaseRequestStep::Prove`], which is
    /// not for the store to answer. `now` is a steady clock.
    pub async fn take(
        &mut self,
        take: &mut LeaseRequest,
        mut step: LeaseRequestStep,
        now: impl Fn() -> Time,
    ) -> LeaseRequestStep {
        loop {
            let answer = match step {
                LeaseRequestStep::Read => self.read().await,
                LeaseRequestStep::Measure => match self.measure(&now).await {
                    Ok(clock) => Answer::Measured(clock),
                    Err(error) => Answer::Lost(error.to_string()),
                },
                LeaseRequestStep::Create { number, state } => self.create(number, &state).await,
                LeaseRequestStep::Prove(_) | LeaseRequestStep::Taken(_) | LeaseRequestStep::Refused(_) => {
                    return step;
                }
            };
            step = take.on(answer, now());
        }
    }

    /// Gives the lease back; [`GiveBackStep::Done`] or [`GiveBackStep::Again`].
    pub async fn give_back(&mut self, back: &mut LeaseReturn) -> GiveBackStep {
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

    /// Whether it can be read and could be taken: what is missing to write it is told, and nothing is
    /// written. Whether a store can be written is tried with the store.
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
