//! What a configuration names and this machine lacks: variables, key files, folders; and an API that is
//! open to the network. Warnings, because the agent may run elsewhere.

use std::net::SocketAddr;
use std::path::Path;

use crate::config::diagnostic::{Diagnostic, Findings};
use crate::config::file::Config;
use crate::config::tree::{self, Node, Value};

/// The warnings about a configuration, each with its line.
pub fn warnings(file: &str, text: &str, config: &Config) -> Vec<Diagnostic> {
    let Ok(node) = tree::parse(text) else { return Vec::new() };
    let mut findings = Findings::new(file, text);
    listen(&node, config, &mut findings);
    store(&node, config, &mut findings);
    walk("", &node, config, &mut findings);
    findings.into_sorted()
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
                walk(&key.name, value, config, findings);
            }
        }
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
}
