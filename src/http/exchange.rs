//! Sends a request to a server. Everything that the agent asks of a server goes through [`send`], so
//! that what can go wrong has one set of names, and a simulation one place to stand in for the network.

use reqwest::{RequestBuilder, Response};

use super::client::cause_of;

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// Nobody listens at the address: nothing was sent.
    #[error("{why}")]
    Refused {
        /// The client's words.
        why: String,
    },
    /// It could not be built, or no connection came about: nothing was sent.
    #[error("{why}")]
    NotSent {
        /// The client's words.
        why: String,
        /// No connection came about in time.
        timed_out: bool,
    },
    /// It was sent, and no answer came in time.
    #[error("{why}")]
    TimedOut {
        /// The client's words.
        why: String,
    },
    /// It was sent, at least in part, and the connection broke before the answer.
    #[error("{why}")]
    Lost {
        /// The client's words.
        why: String,
    },
}

impl Unanswered {
    fn of(error: &reqwest::Error) -> Self {
        let why = cause_of(error);
        match (error.is_connect(), error.is_timeout()) {
            (true, _) if is_refused(error) => Self::Refused { why },
            (true, timed_out) => Self::NotSent { why, timed_out },
            _ if error.is_builder() => Self::NotSent { why, timed_out: false },
            (false, true) => Self::TimedOut { why },
            (false, false) => Self::Lost { why },
        }
    }

    /// Whether time ran out, before or after it was sent.
    pub const fn is_timeout(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::NotSent { timed_out: true, .. })
    }
}

/// Sends a request; its answer's body is still to be read.
///
/// # Errors
/// There is no answer.
pub async fn send(request: RequestBuilder) -> Result<Response, Unanswered> {
    #[cfg(test)]
    if let Some(network) = stand_in::current() {
        let request = request.build().map_err(|e| Unanswered::of(&e))?;
        let limit = request.timeout().copied().unwrap_or(std::time::Duration::MAX);
        let late = |_| Err(Unanswered::TimedOut { why: "operation timed out".into() });
        return tokio::time::timeout(limit, network.carry(request)).await.unwrap_or_else(late);
    }
    request.send().await.map_err(|e| Unanswered::of(&e))
}

fn is_refused(error: &reqwest::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let refused = std::io::ErrorKind::ConnectionRefused;
        if inner.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == refused) {
            return true;
        }
        source = inner.source();
    }
    false
}

/// A network that a test puts in place of the real one, for the requests of its own thread.
#[cfg(test)]
pub mod stand_in {
    use std::cell::RefCell;
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;

    use reqwest::{Request, Response};

    use super::Unanswered;

    /// What becomes of a request.
    pub type Carried = Pin<Box<dyn Future<Output = Result<Response, Unanswered>> + Send>>;

    pub trait Network: Send + Sync {
        /// Carries a request to its server and the answer back.
        fn carry(&self, request: Request) -> Carried;
    }

    thread_local! {
        static NETWORK: RefCell<Option<Arc<dyn Network>>> = const { RefCell::new(None) };
    }

    /// From now on this thread's requests go there; with `None`, into the world again.
    pub fn set(network: Option<Arc<dyn Network>>) {
        NETWORK.set(network);
    }

    pub(in crate::http) fn current() -> Option<Arc<dyn Network>> {
        NETWORK.with_borrow(Clone::clone)
    }
}
