//! `discover`: targets that come and go while the agent runs. A file, an address, the names of DNS or the
//! pods of Kubernetes list them, all in the form of Prometheus' file-based service discovery in the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::de::Field;
use super::diagnostic::Findings;
use super::quantity::Span;
use super::secret::{is_url, masked};
use super::target::{EngineText, Target, is_target_name};
use super::tree::Place;
use skewtrap_core::signal::metrics::Role;

/// How often an address is asked.
const EVERY: Duration = Duration::from_secs(30);

/// Where targets are listed that come and go.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct DiscoverText {
    /// A file in the form of Prometheus' `file_sd_configs`, as JSON; relative to this one. It is read again when it
    /// changes.
    file: Field<String>,
    /// An address that answers with such a list (Prometheus' `http_sd_configs`).
    http: Field<String>,
    /// The addresses of names of DNS: of a headless service, for instance.
    dns: Field<DnsText>,
    /// The pods of Kubernetes that bear some labels.
    kubernetes: Field<KubernetesText>,
    /// How often the address, the names or Kubernetes are asked. Default 30s.
    every: Field<Span>,
}

/// Names whose addresses are targets (A and AAAA records, by the system's resolver).
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct DnsText {
    /// The names.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    names: Field<Vec<Field<String>>>,
    /// The port of the servers behind them.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    port: Field<u16>,
    /// Labels of the targets, as in a list: `group` (by default the name), `role`, `engine`, `__scheme__`,
    /// `__metrics_path__`.
    labels: Field<BTreeMap<String, Field<String>>>,
}

/// Pods whose addresses are targets.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct KubernetesText {
    /// Which pods, as `kubectl get pods -l` takes it: `app=sglang,tier!=test`.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    selector: Field<String>,
    /// The port of the servers in them.
    #[cfg_attr(test, schemars(extend("x-required" = true)))]
    port: Field<u16>,
    /// In which namespace. Default: the agent's own.
    namespace: Field<String>,
    /// The address of the API, as `kubectl proxy` serves it. Default: that of the cluster in which the agent runs.
    api: Field<String>,
    /// Labels of the targets, as in a list: `group` (by default the pod's label `app.kubernetes.io/name` or
    /// `app`), `role`, `engine`, `__scheme__`, `__metrics_path__`.
    labels: Field<BTreeMap<String, Field<String>>>,
}

impl DiscoverText {
    /// As `check --effective` shows it.
    pub(super) fn shown(&self) -> String {
        let place = self.http.get().map(|url| masked(url)).or_else(|| self.file.get().cloned());
        let names = || {
            let names = self.dns.get()?.names.get()?.iter().filter_map(Field::get).cloned();
            Some(names.collect::<Vec<_>>().join(", "))
        };
        let pods = || Some(format!("pods with {}", self.kubernetes.get()?.selector.get()?));
        place.or_else(names).or_else(pods).unwrap_or_default()
    }
}

/// Where further targets are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discover {
    /// In a file, as it is written in the configuration.
    File(String),
    /// At an address, which is asked this often.
    Http {
        /// The address.
        url: String,
        /// How often.
        every: Duration,
    },
    /// By names of DNS.
    Dns {
        /// The names.
        names: Vec<String>,
        /// The port of the servers.
        port: u16,
        /// Labels of the targets.
        labels: BTreeMap<String, String>,
        /// How often they are asked.
        every: Duration,
    },
    /// By the pods of Kubernetes.
    Kubernetes {
        /// Which ones.
        pods: Pods,
        /// How often they are asked for.
        every: Duration,
    },
}

/// Pods of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pods {
    /// Which, by their labels.
    pub selector: String,
    /// The port of the servers in them.
    pub port: u16,
    /// In which namespace; `None` for the agent's own.
    pub namespace: Option<String>,
    /// The API; `None` for that of the cluster.
    pub api: Option<String>,
    /// Labels of the targets.
    pub labels: BTreeMap<String, String>,
}

impl Discover {
    /// How often it is asked; `None` for a file, which is watched.
    pub const fn every(&self) -> Option<Duration> {
        match self {
            Self::File(_) => None,
            Self::Http { every, .. } | Self::Dns { every, .. } | Self::Kubernetes { every, .. } => {
                Some(*every)
            }
        }
    }

    /// What is asked, for a sentence.
    pub fn place(&self) -> String {
        match self {
            Self::File(file) => file.clone(),
            Self::Http { url, .. } => masked(url),
            Self::Dns { names, .. } => names.join(", "),
            Self::Kubernetes { pods, .. } => format!("the pods with {}", pods.selector),
        }
    }
}

/// The place of the list, if one is named.
pub(super) fn check(field: &Field<DiscoverText>, findings: &mut Findings<'_>) -> Option<Discover> {
    let (text, place) = field.placed()?;
    let every = text.every.or(Span(EVERY)).0;
    if let Some(at) = text.every.place().filter(|_| every < Duration::from_secs(1)) {
        findings.error(at, "`every` is at least 1s", None);
    }
    match (
        text.file.get().filter(|f| !f.is_empty()),
        text.http.get(),
        text.dns.placed(),
        text.kubernetes.placed(),
    ) {
        (Some(file), None, None, None) => Some(Discover::File(file.clone())),
        (None, Some(url), None, None) if is_url(url) => Some(Discover::Http { url: url.clone(), every }),
        (None, None, Some((dns, at)), None) => dns_of(dns, every, at, findings),
        (None, None, None, Some((pods, at))) => {
            Some(Discover::Kubernetes { pods: pods_of(pods, at, findings)?, every })
        }
        (None, Some(url), None, None) => {
            let message = format!("`{}` is no address of a list of targets", masked(url));
            findings.error_hiding_line(place, message, Some("write http://HOST:PORT/PATH".into()));
            None
        }
        _ => {
            let hint = "write `discover: { file: targets.json }`, or one of `http: http://HOST/PATH`, `dns: {...}`, `kubernetes: {...}`";
            findings.error(
                place,
                "`discover` names one place: a file, an address, names of DNS or pods of Kubernetes",
                Some(hint.into()),
            );
            None
        }
    }
}

fn dns_of(text: &DnsText, every: Duration, at: Place, findings: &mut Findings<'_>) -> Option<Discover> {
    let names: Vec<String> = text.names.get().into_iter().flatten().filter_map(Field::get).cloned().collect();
    let is_name = |name: &String| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    };
    if let Some(odd) = names.iter().find(|name| !is_name(name)) {
        findings.error(
            at,
            format!("`{odd}` is no name of DNS"),
            Some("write `chat.prod.svc.cluster.local`".into()),
        );
        return None;
    }
    let (false, Some(port)) = (names.is_empty(), text.port.get()) else {
        findings.error(at, "`dns` needs `names` and their `port`", None);
        return None;
    };
    Some(Discover::Dns { names, port: *port, labels: labels_of(&text.labels), every })
}

fn pods_of(text: &KubernetesText, at: Place, findings: &mut Findings<'_>) -> Option<Pods> {
    let selector = text.selector.get().filter(|s| !s.trim().is_empty());
    let (Some(selector), Some(port)) = (selector, text.port.get()) else {
        findings.error(at, "`kubernetes` needs the `selector` of the pods and their `port`", None);
        return None;
    };
    if let Some(api) = text.api.get().filter(|api| !is_url(api)) {
        let hint = "write `api: http://127.0.0.1:8001`, as `kubectl proxy` serves it";
        findings.error_hiding_line(at, format!("`{}` is no address", masked(api)), Some(hint.into()));
        return None;
    }
    Some(Pods {
        selector: selector.clone(),
        port: *port,
        namespace: text.namespace.get().cloned(),
        api: text.api.get().map(|api| api.trim_end_matches('/').to_owned()),
        labels: labels_of(&text.labels),
    })
}

fn labels_of(field: &Field<BTreeMap<String, Field<String>>>) -> BTreeMap<String, String> {
    let labels = field.get().into_iter().flatten();
    labels.filter_map(|(name, value)| Some((name.clone(), value.get()?.clone()))).collect()
}

/// A group of targets as Prometheus lists them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Group {
    /// Their addresses.
    pub targets: Vec<String>,
    /// What is said of each of them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// The targets of a list.
///
/// # Errors
/// It is none: a sentence.
pub fn targets_of(text: &str) -> Result<Vec<Target>, String> {
    let groups: Vec<Group> = serde_json::from_slice(text.as_bytes()).map_err(|e| {
        format!(
            "it is no list of targets in the form of Prometheus' file_sd ({e}); write [{{\"targets\": [\"10.0.0.1:30000\"], \"labels\": {{\"group\": \"chat\"}}}}]"
        )
    })?;
    let mut targets: Vec<Target> = Vec::new();
    for Group { targets: addresses, labels } in groups {
        for address in &addresses {
            let target = target_of(address, &labels)?;
            if targets.iter().any(|other| other.name == target.name) {
                return Err(format!("two targets are called `{}`", target.name));
            }
            targets.push(target);
        }
    }
    Ok(targets)
}

fn target_of(address: &str, labels: &BTreeMap<String, String>) -> Result<Target, String> {
    let label = |name: &str| labels.get(name).map(String::as_str);
    let url = match address.contains("://") {
        true => address.to_owned(),
        false => format!("{}://{address}", label("__scheme__").unwrap_or("http")),
    };
    if !is_url(&url) {
        return Err(format!(
            "`{}` is no server's address: write HOST:PORT",
            address.split('@').next_back().unwrap_or("")
        ));
    }
    let mut target = Target::of(Some(&url), &[]);
    if let Some(engine) = label("engine") {
        let known = serde_json::from_value::<EngineText>(engine.into());
        target.set_engine(known.map_err(|_| {
            format!("`{engine}` is no engine: write auto, sglang, vllm, tensorrt_llm or dynamo")
        })?);
    }
    if let Some(path) = label("__metrics_path__") {
        target.metrics = Some(format!("{}{path}", url.trim_end_matches('/')));
    }
    if let Some(name) = label("instance").or_else(|| label("name")) {
        target.name = Arc::from(name);
        target.group = target.name.clone();
    }
    if !is_target_name(&target.name) {
        return Err(format!(
            "`{}` is no name of a target: 1 to 80 characters, none of them a space, quote or slash",
            target.name
        ));
    }
    if let Some(group) = label("group") {
        target.group = Arc::from(group);
    }
    target.role = match label("role") {
        None => None,
        Some(role) => Some(
            serde_json::from_value::<Role>(role.into())
                .map_err(|_| format!("`{role}` is no role: write prefill, decode or unified"))?,
        ),
    };
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_of_prometheus_form_become_servers_with_their_group_and_role() {
        let text = r#"[
            {"targets": ["10.0.0.1:30000", "10.0.0.2:30000"], "labels": {"group": "chat", "role": "decode", "job": "llm"}},
            {"targets": ["gpu7:8000"], "labels": {"__scheme__": "https", "__metrics_path__": "/m", "instance": "seven"}}
        ]"#;
        let targets = targets_of(text).expect("a list");
        let told: Vec<_> = targets
            .iter()
            .map(|t| {
                (
                    &*t.name,
                    t.url.as_deref().expect("a server"),
                    t.metrics.as_deref().expect("read"),
                    &*t.group,
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("10.0.0.1:30000", "http://10.0.0.1:30000", "http://10.0.0.1:30000/metrics", "chat"),
                ("10.0.0.2:30000", "http://10.0.0.2:30000", "http://10.0.0.2:30000/metrics", "chat"),
                ("seven", "https://gpu7:8000", "https://gpu7:8000/m", "seven"),
            ]
        );
        assert_eq!(targets[0].role, Some(Role::Decode));
        assert_eq!(targets_of("[]"), Ok(Vec::new()));
    }

    #[test]
    fn what_is_no_list_of_targets_says_how_one_is_written() {
        let told = |text: &str| targets_of(text).expect_err("refused");
        assert!(told("{}").contains("write [{\"targets\": [\"10.0.0.1:30000\"]"));
        assert!(told(r#"[{"targets": ["no server"]}]"#).contains("`no server` is no server's address"));
        assert_eq!(told(r#"[{"targets": ["a:1", "a:1"]}]"#), "two targets are called `a:1`");
        assert!(told(r#"[{"targets": ["a:1"], "labels": {"role": "cook"}}]"#).contains("`cook` is no role"));
        assert!(
            told(r#"[{"targets": ["a:1"], "labels": {"engine": "steam"}}]"#).contains("`steam` is no engine")
        );
    }

    #[test]
    fn a_list_says_which_engine_its_targets_run() {
        let list = r#"[{"targets": ["a:1"], "labels": {"engine": "tensorrt_llm"}}]"#;
        let targets = targets_of(list).expect("a list");
        assert_eq!((targets[0].engine, &targets[0].metrics), (EngineText::TensorrtLlm, &None));
    }
}
