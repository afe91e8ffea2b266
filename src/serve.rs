//! The agent's HTTP API, its own metrics and the status page.
//!
//! It asks the agent's loop for its [`Status`] (see [`published`]) and sends requests that change
//! something to the agent's loop as [`Command`]s. It decides nothing and holds no state, so a
//! client that hangs, floods or lies does not disturb the watching. docs/api.md lists the paths.

mod access;
mod api;
mod control;
mod files;
mod inbound;
mod listen;
pub mod metrics;
mod page;
pub mod published;
pub mod token;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use self::access::Access;
pub use self::control::{Action, AlertKey, AlertOrigin, Answer, CaptureBody, Command};
pub use self::inbound::HandledAlerts;
use self::metrics::Metrics;
use self::published::Published;
use crate::http::Secret;
use skewtrap_core::status::{Scope, Status};

/// The largest body of a request, in bytes.
const BODY_LIMIT: usize = 64 * 1024;
/// How old the last pulse of the loop may be before `/healthz` says that the loop hangs.
pub const HUNG_AFTER: Duration = Duration::from_secs(30);
/// The default of `listen`.
pub const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9464);

/// Where to listen, and who has access.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// The API's and the page's address.
    pub listen: SocketAddr,
    /// A second address for `/healthz`, `/readyz` and `/metrics` only, without a token.
    pub metrics_listen: Option<SocketAddr>,
    /// Needed for every change, and beyond loopback for everything. Without it nothing can be changed.
    pub token: Option<Secret>,
    /// On loopback, where no other is configured: the agent's own, once its folder was read.
    pub own_token: Arc<std::sync::OnceLock<Secret>>,
    /// Names, beside `localhost` and addresses, under which people reach the agent.
    pub hosts: Vec<String>,
    /// The folder of the bundles; no file outside it is ever served.
    pub incident_dir: PathBuf,
}

/// What connects the API with the agent.
#[derive(Clone, Debug)]
pub struct ApiContext {
    /// What the agent publishes.
    pub published: Published,
    /// Takes commands to the agent's loop.
    pub commands: mpsc::Sender<Command>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// The alerts of other systems that have asked for a capture.
    pub alerts: Arc<HandledAlerts>,
}

/// Why an address is not served. The watching, and the other address, work without it.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}; is another agent running? set `{key}` to another address")]
    Bind {
        address: SocketAddr,
        /// `listen` or `metrics_listen`.
        key: &'static str,
        source: std::io::Error,
    },
    /// Without a token everybody could read.
    #[error(
        "`listen: {address}` is reachable from other machines and needs a token: set `token` (to \
         `{{ env: NAME }}` or `{{ file: PATH }}`), or listen on 127.0.0.1"
    )]
    NoToken { address: SocketAddr },
}

/// The state of all handlers.
#[derive(Clone, Debug)]
struct Shared {
    context: ApiContext,
    incident_dir: Arc<PathBuf>,
    bundle_disk: BundleDisk,
}

/// The disk of the bundles, which may hang: then a few requests wait for it, each on a thread, and the others are told.
#[derive(Clone, Debug)]
struct BundleDisk(Arc<Semaphore>);

impl BundleDisk {
    /// So many threads may wait for it: the runtime's other work on disks, windows' and DNS' too, needs some.
    const THREADS: usize = 4;
    /// How long a request waits for it.
    const LIMIT: Duration = Duration::from_secs(3);

    fn new() -> Self {
        Self(Arc::new(Semaphore::new(Self::THREADS)))
    }

    /// What `read` gives.
    ///
    /// # Errors
    /// The disk does not answer in time.
    async fn read<T: Send + 'static>(&self, read: Box<dyn FnOnce() -> T + Send>) -> Result<T, ApiError> {
        let turn = self.turn().await.ok_or_else(Self::hangs)?;
        let reading = crate::world::blocking(move || {
            let result = read();
            // The thread waits for as long as the disk does, whoever has left.
            drop(turn);
            result
        });
        let read = tokio::time::timeout(Self::LIMIT, reading).await;
        read.ok().and_then(Result::ok).ok_or_else(Self::hangs)
    }

    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        tokio::time::timeout(Self::LIMIT, self.0.clone().acquire_owned()).await.ok()?.ok()
    }

    fn hangs() -> ApiError {
        let why = "the disk of the incidents does not answer: look at the folder that `incident_dir` names";
        ApiError(StatusCode::SERVICE_UNAVAILABLE, why.into())
    }
}

impl Shared {
    /// The status without any server: what is known of incidents, windows and receivers.
    async fn agent(&self) -> Arc<Status> {
        self.context.published.status(Scope { limit: 0, ranks: false, ..Scope::ALL }).await
    }
}

/// A server that is bound to its addresses and does not answer yet.
#[derive(Debug)]
pub struct ApiServer {
    api: Option<Endpoint>,
    probes: Option<Endpoint>,
}

/// A bound address and its routes.
type Endpoint = (TcpListener, Router);

impl ApiServer {
    /// Binds the addresses, and returns why one could not be served: it is taken, or it is reachable from
    /// other machines and there is no token. One that fails does not affect the other.
    pub async fn bind(config: &ServeConfig, context: ApiContext) -> (Self, Vec<ServeError>) {
        let shared = Shared {
            context,
            incident_dir: Arc::new(config.incident_dir.clone()),
            bundle_disk: BundleDisk::new(),
        };
        let mut errors = Vec::new();
        let api = match api_listener(config).await {
            Ok(listener) => Some((listener, api_router(shared.clone(), Access::new(config)))),
            Err(error) => {
                errors.push(error);
                None
            }
        };
        let probes = match config.metrics_listen {
            Some(address) => match listener(address, "metrics_listen").await {
                Ok(listener) => Some((listener, probes(shared))),
                Err(error) => {
                    errors.push(error);
                    None
                }
            },
            None => None,
        };
        (Self { api, probes }, errors)
    }

    /// The API's address: the port is known where the configuration said 0.
    pub fn address(&self) -> Option<SocketAddr> {
        address_of(self.api.as_ref())
    }

    /// The second address.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        address_of(self.probes.as_ref())
    }

    /// Answers until cancelled, then lets what is being answered finish.
    pub async fn run(self, cancel: CancellationToken) {
        tokio::join!(answer(self.api, cancel.clone()), answer(self.probes, cancel));
    }
}

fn address_of(endpoint: Option<&Endpoint>) -> Option<SocketAddr> {
    endpoint.and_then(|(listener, _)| listener.local_addr().ok())
}

async fn answer(endpoint: Option<Endpoint>, cancel: CancellationToken) {
    if let Some((listener, router)) = endpoint {
        listen::serve(listener, router, cancel).await;
    }
}

async fn api_listener(config: &ServeConfig) -> Result<TcpListener, ServeError> {
    let address = config.listen;
    if !address.ip().is_loopback() && config.token.is_none() {
        return Err(ServeError::NoToken { address });
    }
    listener(address, "listen").await
}

async fn listener(address: SocketAddr, key: &'static str) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Bind { address, key, source })
}

fn probes(shared: Shared) -> Router {
    Router::new()
        .route("/healthz", get(api::healthz))
        .route("/readyz", get(api::readyz))
        .route("/metrics", get(api::metrics))
        .fallback(not_found)
        .with_state(shared)
}

fn api_router(shared: Shared, access: Access) -> Router {
    let v1 = Router::new()
        .route("/status", get(api::status))
        .route("/history", get(api::history))
        .route("/ranks", get(api::ranks))
        .route("/signals", get(api::signals))
        .route("/rules", get(api::rules))
        .route("/rules/{name}", get(api::rule))
        .route("/incidents", get(api::incidents))
        .route("/incidents/{id}", get(api::incident))
        .route("/incidents/{id}/files", get(files::list))
        .route("/incidents/{id}/files/{*path}", get(files::file))
        .route("/incidents/{id}/pin", post(control::pin))
        .route("/incidents/{id}/mark", post(control::mark))
        .route("/capture", post(control::capture))
        .route("/stop", post(control::stop))
        .route("/resume", post(control::resume))
        .route("/reload", post(control::reload))
        .route("/silence", post(control::silence))
        .route("/alerts", post(inbound::alerts).layer(DefaultBodyLimit::max(inbound::BODY_LIMIT)))
        .method_not_allowed_fallback(no_such_method);
    Router::new()
        .merge(page::routes())
        .route("/healthz", get(api::healthz))
        .route("/readyz", get(api::readyz))
        .route("/metrics", get(api::metrics))
        .nest("/api/v1", v1)
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(from_fn(page::security_headers))
        .layer(from_fn_with_state(Arc::new(access), access::admit))
        .layer(from_fn_with_state(shared.context.metrics.clone(), metrics::count))
        .with_state(shared)
}

async fn no_such_method() -> ApiError {
    ApiError(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method; docs/api.md lists them".into())
}

async fn not_found() -> ApiError {
    ApiError(StatusCode::NOT_FOUND, "there is nothing here; docs/api.md lists the paths".into())
}

/// What stands behind the `?`. What is wrong with it is an [`ApiError`], like every other refusal.
struct Query<T>(T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let read = axum::extract::Query::try_from_uri(&parts.uri);
        read.map(|axum::extract::Query(asked)| Self(asked)).map_err(|rejection| {
            let text = rejection.body_text();
            let why = match text.contains(": limit: ") {
                true => "`limit` must be a whole number".to_owned(),
                false => text,
            };
            ApiError(StatusCode::BAD_REQUEST, why)
        })
    }
}

/// An error as every path gives it: `{"error": "a sentence"}`.
#[derive(Debug)]
struct ApiError(StatusCode, String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.0, axum::Json(serde_json::json!({ "error": self.1 }))).into_response()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_disk_that_hangs_holds_a_few_threads_and_no_request_for_long() {
        let (disk, started) = (BundleDisk::new(), Arc::new(AtomicUsize::new(0)));
        let (answers, hangs) = std::sync::mpsc::channel::<()>();
        let hangs = Arc::new(Mutex::new(hangs));
        let reads: Vec<_> = (0..20)
            .map(|_| {
                let (disk, started, hangs) = (disk.clone(), started.clone(), hangs.clone());
                tokio::spawn(async move {
                    let read = move || {
                        started.fetch_add(1, Ordering::Relaxed);
                        let _ = hangs.lock().expect("no panic").recv();
                    };
                    disk.read(Box::new(read)).await.map_err(|error| error.0)
                })
            })
            .collect();
        for read in reads {
            assert_eq!(read.await.expect("no panic"), Err(StatusCode::SERVICE_UNAVAILABLE));
        }
        assert_eq!(started.load(Ordering::Relaxed), BundleDisk::THREADS);
        drop(answers);
        assert_eq!(disk.read(Box::new(|| 7)).await.ok(), Some(7));
    }
}
