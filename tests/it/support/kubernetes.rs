//! A double of the API server of Kubernetes, as far as objects `Lease` go: versions, conflicts, stamps, tokens.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

/// What it holds.
#[derive(Clone, Default)]
pub struct Kubernetes(Arc<Mutex<Cluster>>);

#[derive(Default)]
struct Cluster {
    leases: BTreeMap<String, Value>,
    version: u64,
    conflicts: usize,
    /// Requests that are carried out and not answered: every so many.
    loses: Option<usize>,
    requests: usize,
    /// Verbs that the role lacks: `create`, `update`.
    forbidden: Vec<&'static str>,
}

const TOKEN: &str = "Bearer kubernetes-token";

impl Kubernetes {
    /// Serves it; the address of the API.
    pub async fn listen(&self) -> String {
        let app = Router::new()
            .route("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases", post(create))
            .route(
                "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}",
                get(read).put(replace),
            )
            .with_state(self.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move { axum::serve(listener, app).await });
        address
    }

    /// From now on one request of so many is carried out, and answered with an error.
    pub fn loses_one_of(&self, many: usize) {
        self.0.lock().expect("whole").loses = Some(many);
    }

    /// From now on the role lacks these verbs.
    pub fn forbid(&self, verbs: &[&'static str]) {
        self.0.lock().expect("whole").forbidden = verbs.to_vec();
    }

    /// How many writes were refused because somebody else was first.
    pub fn conflicts(&self) -> usize {
        self.0.lock().expect("whole").conflicts
    }

    pub fn lease(&self, name: &str) -> Option<Value> {
        self.0.lock().expect("whole").leases.get(name).cloned()
    }
}

fn failed(status: StatusCode, message: &str) -> Response {
    (status, axum::Json(json!({ "kind": "Status", "message": message }))).into_response()
}

fn is_known(headers: &HeaderMap) -> bool {
    headers.get("authorization").is_none_or(|token| token == TOKEN)
}

impl Cluster {
    /// Stores an object as the API server does; `object` is the whole of it.
    fn store(&mut self, name: &str, mut object: Value, manager: &str) -> Response {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        // Whole seconds, by its own clock.
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        object["metadata"]["managedFields"] =
            json!([{ "manager": manager, "operation": "Update", "time": now }]);
        self.leases.insert(name.to_owned(), object.clone());
        self.answer(object)
    }

    fn answer(&mut self, object: Value) -> Response {
        self.requests += 1;
        match self.loses.is_some_and(|many| self.requests.is_multiple_of(many)) {
            true => failed(StatusCode::GATEWAY_TIMEOUT, "the answer was lost"),
            false => axum::Json(object).into_response(),
        }
    }
}

async fn read(
    State(k8s): State<Kubernetes>,
    Path((_, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let mut cluster = k8s.0.lock().expect("whole");
    match cluster.leases.get(&name).cloned() {
        _ if !is_known(&headers) => failed(StatusCode::FORBIDDEN, "leases is forbidden"),
        Some(object) => cluster.answer(object),
        None => failed(StatusCode::NOT_FOUND, "not found"),
    }
}

/// The only namespace that there is.
const NAMESPACE: &str = "prod";

async fn create(
    State(k8s): State<Kubernetes>,
    Path(namespace): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
    axum::Json(object): axum::Json<Value>,
) -> Response {
    let mut cluster = k8s.0.lock().expect("whole");
    let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
    assert_eq!(object["kind"], "Lease");
    // Rights come first.
    if cluster.forbidden.contains(&"create") {
        return failed(StatusCode::FORBIDDEN, "leases is forbidden: cannot create");
    }
    if namespace != NAMESPACE {
        return failed(StatusCode::NOT_FOUND, "namespaces not found");
    }
    if query.get("dryRun").is_some_and(|all| all == "All") {
        return axum::Json(object).into_response();
    }
    if cluster.leases.contains_key(&name) {
        cluster.conflicts += 1;
        return failed(StatusCode::CONFLICT, "already exists");
    }
    cluster.store(&name, object, &query["fieldManager"])
}

async fn replace(
    State(k8s): State<Kubernetes>,
    Path((_, name)): Path<(String, String)>,
    Query(query): Query<BTreeMap<String, String>>,
    axum::Json(object): axum::Json<Value>,
) -> Response {
    let mut cluster = k8s.0.lock().expect("whole");
    if cluster.forbidden.contains(&"update") {
        return failed(StatusCode::FORBIDDEN, "leases is forbidden: cannot update");
    }
    let is_trial = query.get("dryRun").is_some_and(|all| all == "All");
    let version = object["metadata"]["resourceVersion"].clone();
    match cluster.leases.get(&name) {
        None => failed(StatusCode::NOT_FOUND, "not found"),
        Some(known) if known["metadata"]["resourceVersion"] != version => {
            cluster.conflicts += 1;
            failed(StatusCode::CONFLICT, "the object has been modified")
        }
        Some(_) if is_trial => axum::Json(object).into_response(),
        Some(_) => cluster.store(&name, object, &query["fieldManager"]),
    }
}
