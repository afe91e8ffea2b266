//! What a configuration names and this machine lacks: variables, key files, folders; and an API that is
//! open to the network. Warnings, because the agent may run elsewhere.

use std::net::SocketAddr;
use std::path::Path;

use crate::config::diagnostic::{Diagnostic, Findings};
use crate::config::file::Config;
use crate::config::tree::{self, Node, Place, Value};
use crate::http::client;

/// The warnings about a configuration, each with its line.
pub fn warnings(file: &str, text: &str, config: &Config) -> Vec<Diagnostic> {
    let Ok(node) = tree::parse(text) else { return Vec::new() };
    let mut findings = Findings::new(file, text);
    watched(&node, &mut findings);
    listen(&node, config, &mut findings);
    folder("state_dir", config.state_dir.as_deref(), &node, &mut findings);
    folder("incident_dir", config.incident_dir.as_deref(), &node, &mut findings);
    store(&node, config, &mut findings);
    walk("", &node, config, &mut findings);
    findings.into_sorted()
}

/// A file that names no server. A file of rules needs none, nor does one with a `store`, which may be of a
/// node, and one that says nothing at all is the defaults.
fn watched(node: &Node, findings: &mut Findings<'_>) {
    let Value::Map(entries) = &node.value else { return };
    let has = |name: &str| entries.iter().any(|(key, _)| key.name == name);
    let is_of_rules = entries.iter().all(|(key, _)| matches!(&*key.name, "rules" | "signals"));
    if !is_of_rules && !["targets", "discover", "store"].into_iter().any(has) {
        let hint = "list a server under `targets`, or name under `discover` where they are listed; `skewtrap run` \
                    refuses the file as it is";
        let message = "no `targets` and no `discover`: the agent would watch nothing";
        findings.warn(Place::default(), message, Some(hint.into()));
    }
}

/// A folder of the agent's own, which it makes where it is missing.
fn folder(key: &str, path: Option<&str>, node: &Node, findings: &mut Findings<'_>) {
    let (Value::Map(entries), Some(path)) = (&node.value, path) else { return };
    let Some((_, at)) = entries.iter().find(|(entry, _)| entry.name == key) else { return };
    // The nearest folder above it that is there: below it the rest is made.
    let there = Path::new(path).ancestors().find(|above| above.exists()).unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    let why = if !there.is_dir() {
        format!("{} is no folder", there.display())
    } else if rustix::fs::access(there, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_err() {
        format!("{} cannot be written by this user", there.display())
    } else {
        return;
    };
    let hint = "the agent keeps its records there: it must be able to write it where it runs";
    findings.warn(at.place, format!("{path} cannot be made here: {why}"), Some(hint.into()));
}

fn listen(node: &Node, config: &Config, findings: &mut Findings<'_>) {
    let Value::Map(entries) = &node.value else { return };
    let Some((_, at)) = entries.iter().find(|(key, _)| key.name == "listen") else { return };
    let is_open = config.listen.parse::<SocketAddr>().is_ok_and(|a| !a.ip().is_loopback());
    if is_open && config.token.is_none() {
        let hint = "set `token: { env: NAME }` or `token: { file: PATH }`; without one the agent serves neither its page nor its API there";
        findings.warn(
            at.place,
            "this address is reachable from other machines, and no `token` is set",
            Some(hint.into()),
        );
    }
}

/// An address of which no store can be made here: a folder that is not there.
#[cfg(feature = "fleet")]
fn store(node: &Node, config: &Config, findings: &mut Findings<'_>) {
    let (Value::Map(entries), Some(store)) = (&node.value, &config.store) else { return };
    let Some((_, at)) = entries.iter().find(|(key, _)| key.name == "store") else { return };
    if let Err(why) = crate::agent::upload::destination(store) {
        let hint = "`skewtrap doctor` tries whether it can be written";
        findings.warn(at.place, format!("{why:#}"), Some(hint.into()));
    }
}

#[cfg(not(feature = "fleet"))]
fn store(_: &Node, _: &Config, _: &mut Findings<'_>) {}

fn walk(name: &str, node: &Node, config: &Config, findings: &mut Findings<'_>) {
    match &node.value {
        Value::List(items) => items.iter().for_each(|item| walk(name, item, config, findings)),
        Value::Map(entries) => {
            // A reference to a secret has one of these keys and no other.
            if let [(key, Node { value: Value::Text(named), place })] = &entries[..] {
                match &*key.name {
                    "env" if std::env::var_os(named).is_none() => {
                        let hint = "the agent needs it in its own environment, which may be another one";
                        findings.warn(
                            *place,
                            format!("the variable {named} is not set here"),
                            Some(hint.into()),
                        );
                    }
                    "file" if std::fs::File::open(findings.beside(named)).is_err() => {
                        let hint = "the agent must be able to read it where it runs";
                        findings.warn(
                            *place,
                            format!("the file {} cannot be read here", findings.beside(named)),
                            Some(hint.into()),
                        );
                    }
                    _ => {}
                }
            }
            for (key, value) in entries {
                if let ("logs", "path", Value::Text(log)) = (name, &*key.name, &value.value) {
                    log_file(log, value.place, findings);
                }
                walk(&key.name, value, config, findings);
            }
        }
        Value::Text(file) if name == "ca_file" => {
            let path = findings.beside(file);
            if let Err(why) = client::client(Some(Path::new(&path))) {
                findings.warn(
                    node.place,
                    why.to_string(),
                    Some("the agent does not start without it: it must be there where it runs".into()),
                );
            }
        }
        Value::Text(log) if name == "logs" => log_file(log, node.place, findings),
        Value::Text(folder) if name == "output_dir" => {
            let path = Path::new(folder);
            let is_local =
                !config.targets.is_empty() && config.targets.iter().all(|t| is_here(t.url.as_deref()));
            if path.exists() && !path.is_dir() {
                findings.warn(node.place, format!("{folder} is no folder"), None);
            } else if is_local && !path.exists() {
                let hint = "SGLang dies when it cannot write there: create it, writable by the server; a server in a container sees other folders";
                findings.warn(
                    node.place,
                    format!("the folder {folder} does not exist here"),
                    Some(hint.into()),
                );
            }
        }
        _ => {}
    }
}

/// A log that is not there yet is waited for; without its folder it most likely never comes.
fn log_file(log: &str, at: Place, findings: &mut Findings<'_>) {
    if log == "-" {
        return;
    }
    let path = findings.beside(log);
    let folder = Path::new(&path).parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        let hint = "nothing is read of the log before it is there; is the path right where the agent runs?";
        let message = format!("the folder {} of this log does not exist here", folder.display());
        findings.warn(at, message, Some(hint.into()));
    }
}

/// Whether a server is on this machine, as far as its address says.
fn is_here(url: Option<&str>) -> bool {
    let host =
        url.and_then(|url| reqwest::Url::parse(url).ok()).and_then(|u| u.host_str().map(str::to_owned));
    host.is_some_and(|h| h == "localhost" || h.starts_with("127.") || h == "[::1]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::load;

    #[test]
    fn what_is_missing_here_is_warned_of_on_its_line() {
        let text = "targets: [{ url: 'http://127.0.0.1:30000' }]
listen: 0.0.0.0:9464
receivers:
  - { name: a, slack: { url: { env: SKEWTRAP_NO_SUCH_VARIABLE } } }
  - { name: b, webhook: { url: 'http://127.0.0.1:9', bearer: { file: /no/such/key } } }
capture: { http: { output_dir: /dev/null } }
";
        let of = |text: &str| {
            let config = load("x.yaml", text, &|_| Ok(Vec::new())).config.expect("it is right");
            let found = warnings("x.yaml", text, &config);
            found.iter().map(|d| (d.line, d.message.clone())).collect::<Vec<_>>()
        };
        assert_eq!(
            of(text),
            [
                (2, "this address is reachable from other machines, and no `token` is set".into()),
                (4, "the variable SKEWTRAP_NO_SUCH_VARIABLE is not set here".into()),
                (5, "the file /no/such/key cannot be read here".into()),
                (6, "/dev/null is no folder".into()),
            ]
        );
        let missing = text.replace("/dev/null", "/no/such/folder");
        assert_eq!(of(&missing)[3], (6, "the folder /no/such/folder does not exist here".into()));
        let elsewhere = missing.replace("127.0.0.1:30000", "gpu7:30000");
        assert_eq!(of(&elsewhere).len(), 3, "a server elsewhere has folders of its own");
    }

    #[test]
    fn what_run_would_refuse_for_want_of_a_file_or_a_folder_is_warned_of_on_its_line() {
        let dir = tempfile::tempdir().expect("a folder");
        let here = dir.path().display();
        let text = format!(
            "targets:
  - {{ url: 'https://127.0.0.1:30000', ca_file: {here}/no/ca.pem, logs: [{here}/no/a.log, '-', {{ path: {here}/no/b.log }}, {here}/c.log] }}
state_dir: {here}/a-file/state
incident_dir: {here}/to/be/made
"
        );
        std::fs::write(dir.path().join("a-file"), b"").expect("written");
        let config = load("x.yaml", &text, &|_| Ok(Vec::new())).config.expect("it is right");
        let told: Vec<(u32, String)> =
            warnings("x.yaml", &text, &config).iter().map(|d| (d.line, d.message.clone())).collect();
        assert_eq!(
            told,
            [
                (
                    2,
                    format!(
                        "the certificates in {here}/no/ca.pem cannot be used: No such file or directory (os error 2); it must hold PEM certificates of authorities"
                    )
                ),
                (2, format!("the folder {here}/no of this log does not exist here")),
                (2, format!("the folder {here}/no of this log does not exist here")),
                (3, format!("{here}/a-file/state cannot be made here: {here}/a-file is no folder")),
            ]
        );
    }

    #[test]
    fn a_configuration_that_watches_nothing_is_warned_of_unless_it_may_be_of_a_node() {
        let nothing_watched = |text: &str| {
            let draft = load("x.yaml", text, &|_| Ok(Vec::new())).draft.expect("a configuration");
            let told = warnings("x.yaml", text, &draft);
            told.iter().any(|d| d.message == "no `targets` and no `discover`: the agent would watch nothing")
        };
        for text in ["watch_only: true\n", "receivers: [{ name: a, stdout: {} }]\nlisten: 127.0.0.1:9464\n"] {
            assert!(nothing_watched(text), "{text}");
        }
        for text in [
            "store: file:///tmp\nstate_dir: /tmp\n",
            "discover: { file: targets.json }\n",
            "rules: [preset:starved-rank]\n",
            "signals: [{ name: mine, metric: x }]\nrules: [{ name: a, signal: mine, trigger: { cv: 0.4 } }]\n",
            crate::config::file::DEFAULTS,
        ] {
            assert!(!nothing_watched(text), "{text}");
        }
    }
}
