//! `discover`: targets that a file lists in the form of Prometheus' file-based service discovery, and that come and
//! go while the agent runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;

use super::de::Field;
use super::diagnostic::Findings;
use super::quantity::Span;
use super::secret::{is_url, masked};
use super::target::{Target, is_target_name};
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
    /// How often the address is asked. Default 30s.
    every: Field<Span>,
}

impl DiscoverText {
    /// As `check --effective` shows it.
    pub(super) fn shown(&self) -> String {
        let place = self.http.get().map(|url| masked(url)).or_else(|| self.file.get().cloned());
        place.unwrap_or_default()
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
}

/// The place of the list, if one is named.
pub(super) fn check(field: &Field<DiscoverText>, findings: &mut Findings<'_>) -> Option<Discover> {
    let (text, place) = field.placed()?;
    let every = text.every.or(Span(EVERY)).0;
    if let Some(at) = text.every.place().filter(|_| every < Duration::from_secs(1)) {
        findings.error(at, "`every` is at least 1s", None);
    }
    match (text.file.get().filter(|f| !f.is_empty()), text.http.get()) {
        (Some(file), None) => Some(Discover::File(file.clone())),
        (None, Some(url)) if is_url(url) => Some(Discover::Http { url: url.clone(), every }),
        (None, Some(url)) => {
            let message = format!("`{}` is no address of a list of targets", masked(url));
            findings.error_hiding_line(place, message, Some("write http://HOST:PORT/PATH".into()));
            None
        }
        _ => {
            let hint = "write `discover: { file: targets.json }`, or `discover: { http: http://HOST/PATH }`";
            findings.error(place, "`discover` names one file or one address", Some(hint.into()));
            None
        }
    }
}

/// A group of targets as Prometheus lists them.
#[derive(Deserialize)]
struct Group {
    targets: Vec<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
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
    }
}
