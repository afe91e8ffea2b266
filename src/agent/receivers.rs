//! From the configured receivers to those that can be reached: their secrets are read here.

use std::path::Path;
use std::sync::Arc;

use crate::act::notify::{Receiver, Route, Transport};
use crate::config::receiver as configured;
use crate::config::secret::{Address, SecretRef};
use crate::http::Secret;
use crate::http::secret::SecretError;

/// A receiver whose secret cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("receiver {name}: {source}; it gets no messages until that is corrected and the agent is restarted")]
pub struct UnusableReceiver {
    pub name: Arc<str>,
    /// By what it would get messages: `webhook`.
    pub means: &'static str,
    pub source: SecretError,
}

/// The receivers of a configuration, or standard output (under systemd, the journal) where it has
/// none; and those that lack their secret.
pub fn told(receivers: &[configured::Receiver]) -> (Vec<Receiver>, Vec<UnusableReceiver>) {
    if receivers.is_empty() {
        return (vec![Receiver::new("stdout", Transport::Stdout { json: false })], Vec::new());
    }
    ready(receivers)
}

/// The receivers that can be reached, and those that lack their secret.
pub fn ready(receivers: &[configured::Receiver]) -> (Vec<Receiver>, Vec<UnusableReceiver>) {
    let mut ready = Vec::new();
    let mut unusable = Vec::new();
    for receiver in receivers {
        match receiver_of(receiver) {
            Ok(receiver) => ready.push(receiver),
            Err(source) => {
                unusable.push(UnusableReceiver {
                    name: receiver.name.clone(),
                    means: receiver.means.word(),
                    source,
                });
            }
        }
    }
    (ready, unusable)
}

/// What a configuration that was read again changes of the receivers, a sentence each: workers are
/// started with the agent, so none of it is in force before a restart.
pub fn waiting(running: &[configured::Receiver], new: &[configured::Receiver]) -> Vec<String> {
    let old_of = |name: &str| running.iter().find(|r| *r.name == *name);
    let changed = new.iter().filter_map(|receiver| match old_of(&receiver.name) {
        None => Some(format!(
            "receiver {} is new in the configuration: it gets no messages until the agent is restarted",
            receiver.name
        )),
        Some(old) if old != receiver => Some(format!(
            "receiver {} was changed in the configuration: it gets messages as before until the agent is restarted",
            receiver.name
        )),
        Some(_) => None,
    });
    let gone = running.iter().filter(|old| !new.iter().any(|r| r.name == old.name)).map(|old| {
        format!(
            "receiver {} is gone from the configuration: it gets messages as before until the agent is restarted",
            old.name
        )
    });
    changed.chain(gone).collect()
}

/// The secret that `place` refers to.
///
/// # Errors
/// The variable is not set, the file cannot be read, or there is nothing in it.
pub fn secret_of(place: &SecretRef) -> Result<Secret, SecretError> {
    match place {
        SecretRef::Env(name) => Secret::from_env(name),
        SecretRef::File(path) => Secret::from_file(Path::new(path)),
    }
}

fn receiver_of(receiver: &configured::Receiver) -> Result<Receiver, SecretError> {
    Ok(Receiver {
        name: receiver.name.clone(),
        means: means_of(&receiver.means)?,
        route: Route {
            by_default: receiver.by_default,
            min_severity: receiver.min_severity,
            labels: receiver.labels.clone(),
            updates: receiver.updates.clone(),
        },
        timeout: receiver.timeout,
    })
}

fn means_of(means: &configured::Transport) -> Result<Transport, SecretError> {
    let optional = |place: &Option<SecretRef>| place.as_ref().map(secret_of).transpose();
    Ok(match means {
        configured::Transport::Webhook { url, signing_key, bearer } => Transport::Webhook {
            url: address_of(url)?,
            signing_key: optional(signing_key)?,
            bearer: optional(bearer)?,
        },
        configured::Transport::Slack { url } => Transport::Slack { url: secret_of(url)? },
        configured::Transport::Alertmanager { url, bearer } => {
            Transport::Alertmanager { url: address_of(url)?, bearer: optional(bearer)? }
        }
        configured::Transport::Command { argv } => Transport::Command { argv: argv.clone() },
        configured::Transport::Stdout { json } => Transport::Stdout { json: *json },
    })
}

/// An address, written out or read from where it is stored.
///
/// # Errors
/// As [`secret_of`].
pub fn address_of(address: &Address) -> Result<Secret, SecretError> {
    match address {
        Address::Plain(text) => Ok(Secret::new(text.as_str())),
        Address::Secret(place) => secret_of(place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::plan::{Flags, Plan};
    use crate::config::file::load;
    use skewtrap_core::message::Update;

    #[test]
    fn without_receivers_in_the_configuration_standard_output_is_told() {
        let text = "targets: [{ url: 'http://127.0.0.1:30000' }]\n";
        let config = load("skewtrap.yaml", text, &|_| Ok(Vec::new())).config.expect("it is right");
        let plan = Plan::of(&config, &Flags::default()).expect("a plan");
        let [receiver] = plan.receivers.as_slice() else { panic!("{:?}", plan.receivers) };
        assert!(matches!(receiver.means, Transport::Stdout { json: false }), "{receiver:?}");
        assert_eq!(receiver.route, Route::default());
    }

    #[test]
    fn what_a_reload_changes_of_the_receivers_is_named_with_what_puts_it_in_force() {
        let receivers = |text: &str| {
            let text = format!("targets: [{{ url: 'http://127.0.0.1:30000' }}]\nreceivers: [{text}]\n");
            load("skewtrap.yaml", &text, &|_| Ok(Vec::new())).config.expect("it is right").receivers
        };
        let old = receivers("{ name: a, stdout: {} }, { name: b, stdout: {} }, { name: c, stdout: {} }");
        let new = receivers(
            "{ name: a, stdout: {} }, { name: b, stdout: { json: true } }, { name: d, stdout: {} }",
        );
        assert!(waiting(&old, &old).is_empty());
        let sentences = waiting(&old, &new);
        let starts = ["receiver b was changed in", "receiver d is new in", "receiver c is gone from"];
        assert_eq!(sentences.len(), starts.len(), "{sentences:?}");
        for (sentence, start) in sentences.iter().zip(starts) {
            assert!(
                sentence.starts_with(start) && sentence.ends_with("until the agent is restarted"),
                "{sentence}"
            );
        }
    }

    #[test]
    fn a_receiver_without_its_secret_is_named_and_the_others_are_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let key = dir.path().join("key");
        std::fs::write(&key, "k3y\n").expect("it is written");
        let text = format!(
            "targets: [{{ url: 'http://127.0.0.1:30000' }}]\n\
             receivers:\n\
             - {{ name: oncall, updates: [fired, refused], webhook: {{ url: 'http://hook', signing_key: {{ file: '{}' }} }} }}\n\
             - {{ name: team, slack: {{ url: {{ env: SKEWTRAP_NO_SUCH_VARIABLE }} }} }}\n",
            key.display()
        );
        let loaded = load("skewtrap.yaml", &text, &|_| Ok(Vec::new()));
        let config = loaded.config.unwrap_or_else(|| panic!("{:?}", loaded.diagnostics));
        let (ready, unusable) = ready(&config.receivers);
        let [oncall] = ready.as_slice() else { panic!("{ready:?}") };
        assert_eq!(oncall.route.updates, [Update::Fired, Update::Refused]);
        assert!(
            matches!(&oncall.means, Transport::Webhook { signing_key: Some(k), .. } if k.reveal() == "k3y")
        );
        let [team] = unusable.as_slice() else { panic!("{unusable:?}") };
        assert!(team.to_string().starts_with("receiver team: the environment variable"), "{team}");
    }
}
