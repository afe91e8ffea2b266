//! Asks for the targets that come and go: an address that lists them, names of DNS, the pods of Kubernetes.
//! Whatever is asked, what comes out is a list in the form of Prometheus' file-based service discovery, in an
//! order of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

use crate::config::discover::{Discover, Group, Pods};
use crate::http::kubernetes::{Api, IDENTITY, NoPod};
use crate::http::{Secret, body, client};

/// No list is longer.
const MOST: usize = 8 << 20;
const WITHIN: Duration = Duration::from_secs(10);
/// So many pods are asked for at once.
const PAGE: u32 = 500;

/// Why a list cannot be had: a sentence without the place that was asked.
#[derive(Debug, Error)]
pub enum DiscoverError {
    /// It was not reached, or its answer not read.
    #[error("it was not reached: {0}")]
    Unreached(String),
    /// It answered something else.
    #[error("it answered {status}{said}")]
    Status {
        status: u16,
        /// What it said, behind a colon.
        said: String,
    },
    /// A name has no address.
    #[error("the name {name} has no address: {why}")]
    Name {
        name: String,
        /// The resolver's words.
        why: String,
    },
    /// The agent runs in no pod.
    #[error(transparent)]
    NoPod(#[from] NoPod),
    /// The role of the agent does not allow it.
    #[error(
        "Kubernetes does not let this service account list pods of the namespace {namespace} (403): give it a role with `get` and `list` on `pods`"
    )]
    Forbidden { namespace: String },
    /// The answer is no list of pods.
    #[error("what answers is no API of Kubernetes: {0}")]
    NotPods(String),
}

/// Asks once.
///
/// # Errors
/// Nothing that can be used came: the list of before is the better one.
pub async fn list(from: &Discover) -> Result<String, DiscoverError> {
    let groups = match from {
        Discover::File(_) => return Ok("[]".to_owned()),
        Discover::Http { url, .. } => {
            let bytes = get(url, None, None).await?;
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
        Discover::Dns { names, port, labels, .. } => by_names(names, *port, labels).await?,
        Discover::Kubernetes { pods, .. } => by_pods(pods, Path::new(IDENTITY)).await?,
    };
    Ok(serde_json::to_string(&groups).unwrap_or_else(|_| "[]".to_owned()))
}

async fn by_names(
    names: &[String],
    port: u16,
    labels: &BTreeMap<String, String>,
) -> Result<Vec<Group>, DiscoverError> {
    let mut groups = Vec::new();
    for name in names {
        let fail = |why: String| DiscoverError::Name { name: name.clone(), why };
        let asking = tokio::time::timeout(WITHIN, tokio::net::lookup_host((name.as_str(), port)));
        let found = asking.await.map_err(|_| fail("nothing answered in time".into()))?;
        // Resolvers give them in another order each time.
        let addresses: BTreeSet<SocketAddr> = found.map_err(|e| fail(e.to_string()))?.collect();
        if addresses.is_empty() {
            return Err(fail("nobody is there".into()));
        }
        let mut labels = labels.clone();
        labels.entry("group".into()).or_insert_with(|| name.clone());
        groups.push(Group { targets: addresses.iter().map(ToString::to_string).collect(), labels });
    }
    Ok(groups)
}

/// The pods that run, each a group of its own, for each has a name.
async fn by_pods(pods: &Pods, identity: &Path) -> Result<Vec<Group>, DiscoverError> {
    let Api { address, authorities, token, namespace } =
        Api::now(pods.api.as_deref(), pods.namespace.as_deref(), identity)?;
    let (mut found, mut follows) = (BTreeMap::new(), String::new());
    loop {
        let mut url = reqwest::Url::parse(&format!("{address}/api/v1/namespaces/{namespace}/pods"))
            .map_err(|e| DiscoverError::Unreached(e.to_string()))?;
        url.query_pairs_mut()
            .append_pair("labelSelector", &pods.selector)
            .append_pair("limit", &PAGE.to_string());
        if !follows.is_empty() {
            url.query_pairs_mut().append_pair("continue", &follows);
        }
        let bytes = match get(url.as_str(), authorities.as_deref(), token.as_ref()).await {
            Err(DiscoverError::Status { status: 403, .. }) => {
                return Err(DiscoverError::Forbidden { namespace });
            }
            other => other?,
        };
        let page: Value =
            serde_json::from_slice(&bytes).map_err(|e| DiscoverError::NotPods(e.to_string()))?;
        let items =
            page["items"].as_array().ok_or_else(|| DiscoverError::NotPods("it lists no `items`".into()))?;
        found.extend(items.iter().filter_map(|pod| group_of(pod, pods)));
        follows = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        if follows.is_empty() {
            return Ok(found.into_values().collect());
        }
    }
}

/// A pod that runs, with its name. One that is being deleted serves no new requests.
fn group_of(pod: &Value, pods: &Pods) -> Option<(String, Group)> {
    let (about, status) = (&pod["metadata"], &pod["status"]);
    let runs = status["phase"] == "Running" && about["deletionTimestamp"].is_null();
    let name = about["name"].as_str().filter(|_| runs)?.to_owned();
    let address: IpAddr = status["podIP"].as_str()?.parse().ok()?;
    let mut labels = pods.labels.clone();
    labels.insert("instance".into(), name.clone());
    let label = |key: &str| about["labels"][key].as_str().map(str::to_owned);
    if let Some(group) = label("app.kubernetes.io/name").or_else(|| label("app")) {
        labels.entry("group".into()).or_insert(group);
    }
    let targets = vec![SocketAddr::new(address, pods.port).to_string()];
    Some((name, Group { targets, labels }))
}

async fn get(
    url: &str,
    authorities: Option<&Path>,
    token: Option<&Secret>,
) -> Result<Vec<u8>, DiscoverError> {
    let client = client::client(authorities).map_err(|e| DiscoverError::Unreached(e.to_string()))?;
    let mut request = client.get(url).timeout(WITHIN).header("accept", "application/json");
    if let Some(token) = token {
        request = request.bearer_auth(token.reveal());
    }
    let answer = request.send().await.map_err(|e| DiscoverError::Unreached(client::cause_of(&e)))?;
    let status = answer.status();
    if !status.is_success() {
        let said: Value = serde_json::from_str(&body::beginning(answer, WITHIN).await).unwrap_or_default();
        let said = said["message"].as_str().map_or_else(String::new, |m| format!(": {m}"));
        return Err(DiscoverError::Status { status: status.as_u16(), said });
    }
    body::read(answer, MOST, WITHIN).await.map_err(|e| DiscoverError::Unreached(e.to_string()))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::extract::Query;
    use axum::http::{HeaderMap, StatusCode, Uri};
    use axum::response::IntoResponse as _;
    use serde_json::json;

    use super::*;
    use crate::config::discover::targets_of;

    fn pod(name: &str, address: &str, phase: &str) -> Value {
        json!({
            "metadata": {"name": name, "labels": {"app": "chat"}},
            "status": {"phase": phase, "podIP": address},
        })
    }

    /// The API of Kubernetes with these pages of pods; what it was asked, and with which token.
    async fn kubernetes(pages: Vec<Vec<Value>>) -> (String, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        let answer = move |uri: Uri, headers: HeaderMap, Query(query): Query<BTreeMap<String, String>>| {
            let token =
                headers.get("authorization").and_then(|t| t.to_str().ok()).unwrap_or("nobody").to_owned();
            seen.lock().expect("whole").push(format!("{} {} as {token}", uri.path(), query["labelSelector"]));
            let page: usize = query.get("continue").map_or(0, |n| n.parse().expect("a number"));
            let follows = if page + 1 < pages.len() { (page + 1).to_string() } else { String::new() };
            let list =
                json!({"kind": "PodList", "metadata": {"continue": follows}, "items": pages.get(page)});
            async move {
                match token.contains("secret") {
                    true => axum::Json(list).into_response(),
                    false => (StatusCode::FORBIDDEN, axum::Json(json!({"message": "pods is forbidden"})))
                        .into_response(),
                }
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        (base, asked)
    }

    fn identity(token: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("token"), token).expect("written");
        std::fs::write(dir.path().join("namespace"), "prod\n").expect("written");
        dir
    }

    fn wanted(api: &str) -> Pods {
        Pods {
            selector: "app=chat,tier!=test".into(),
            port: 30000,
            namespace: None,
            api: Some(api.to_owned()),
            labels: [("role".to_owned(), "decode".to_owned())].into(),
        }
    }

    #[tokio::test]
    async fn pods_that_run_become_targets_by_their_names_page_after_page() {
        let mut gone = pod("chat-9", "10.0.0.9", "Running");
        gone["metadata"]["deletionTimestamp"] = json!("2026-11-29T10:00:00Z");
        let first = vec![pod("chat-1", "10.0.0.1", "Running"), pod("chat-0", "10.0.0.7", "Running"), gone];
        let second = vec![pod("chat-2", "fd00::2", "Running"), pod("chat-3", "10.0.0.3", "Pending")];
        let (api, asked) = kubernetes(vec![first, second]).await;
        let identity = identity("secret\n");
        let groups = by_pods(&wanted(&api), identity.path()).await.expect("pods");
        let list = serde_json::to_string(&groups).expect("JSON");
        let targets = targets_of(&list).expect("a list as Prometheus has it");
        let told: Vec<_> =
            targets.iter().map(|t| (&*t.name, t.url.as_deref().expect("an address"), &*t.group)).collect();
        assert_eq!(
            told,
            [
                ("chat-0", "http://10.0.0.7:30000", "chat"),
                ("chat-1", "http://10.0.0.1:30000", "chat"),
                ("chat-2", "http://[fd00::2]:30000", "chat"),
            ]
        );
        let asked = asked.lock().expect("whole").clone();
        let once = "/api/v1/namespaces/prod/pods app=chat,tier!=test as Bearer secret";
        assert_eq!(asked, [once, once]);
    }

    #[tokio::test]
    async fn what_kubernetes_refuses_and_what_is_no_kubernetes_says_what_to_do() {
        let (api, _) = kubernetes(vec![Vec::new()]).await;
        let stranger = identity("");
        let why = by_pods(&wanted(&api), stranger.path()).await.expect_err("refused").to_string();
        assert!(
            why.contains("of the namespace prod (403): give it a role with `get` and `list` on `pods`"),
            "{why}"
        );
        let nowhere = Pods { api: None, ..wanted("") };
        let empty = tempfile::tempdir().expect("a folder");
        let why = by_pods(&nowhere, empty.path()).await.expect_err("no pod").to_string();
        assert!(why.contains("runs in no pod of Kubernetes") && why.contains("kubectl proxy"), "{why}");
        assert_eq!(by_pods(&wanted(&api), identity("secret").path()).await.expect("no pods"), []);
    }

    #[tokio::test]
    async fn the_addresses_of_a_name_are_targets_of_one_group_in_the_same_order_each_time() {
        let labels = BTreeMap::from([("role".to_owned(), "decode".to_owned())]);
        let groups = by_names(&["localhost".to_owned()], 30000, &labels).await.expect("it has an address");
        assert!(groups[0].targets.contains(&"127.0.0.1:30000".to_owned()), "{groups:?}");
        assert_eq!((&*groups[0].labels["group"], &*groups[0].labels["role"]), ("localhost", "decode"));
        assert!(groups[0].targets.is_sorted());
        let why = by_names(&["no-such-name.invalid".to_owned()], 1, &labels).await.expect_err("no address");
        assert!(why.to_string().starts_with("the name no-such-name.invalid has no address"), "{why}");
    }
}
