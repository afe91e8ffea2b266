//! What systemd is told, through the socket that it gives to its services.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use crate::support::agent::Agent;

/// What stands in for systemd, and the address that it gives to the service.
fn systemd(dir: &Path) -> (UnixDatagram, String) {
    let path = dir.join("notify");
    let socket = UnixDatagram::bind(&path).expect("bound");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
    (socket, path.display().to_string())
}

/// What it hears up to a message with `words`, that one included.
fn until(socket: &UnixDatagram, words: &str) -> Vec<String> {
    let mut heard = Vec::new();
    loop {
        let mut message = [0; 4096];
        let size =
            socket.recv(&mut message).unwrap_or_else(|e| panic!("`{words}` never came ({e}): {heard:#?}"));
        heard.push(String::from_utf8_lossy(&message[..size]).into_owned());
        if heard.last().is_some_and(|last| last.contains(words)) {
            return heard;
        }
    }
}

#[test]
fn a_service_whose_list_of_targets_changes_goes_on_and_does_not_say_that_it_stops() {
    let dir = tempfile::tempdir().expect("a folder");
    let (socket, address) = systemd(dir.path());
    let at = dir.path().display();
    let text = format!(
        "discover: {{ file: targets.json }}\nstate_dir: '{at}/state'\nincident_dir: '{at}/incidents'\nlisten: 127.0.0.1:0\n"
    );
    fs::write(dir.path().join("skewtrap.yaml"), text).expect("written");
    let list = |text: &str| {
        fs::write(dir.path().join("new.json"), text).expect("written");
        fs::rename(dir.path().join("new.json"), dir.path().join("targets.json")).expect("moved");
    };
    list(r#"[{"targets": ["127.0.0.1:1"]}]"#);
    let mut agent = Agent::with(dir.path(), &[("NOTIFY_SOCKET", &address)], &["--config", "skewtrap.yaml"]);
    until(&socket, "READY=1");
    list(r#"[{"targets": ["127.0.0.1:1", "127.0.0.1:2"]}]"#);
    agent.until("the list of targets has changed: 1 came, 0 went");
    // The reading says READY, and the next life does.
    let heard = [until(&socket, "READY=1"), until(&socket, "READY=1")].concat();
    // It would be killed when its time for that is over.
    assert!(heard.iter().all(|message| !message.contains("STOPPING=1")), "{heard:#?}");
    agent.signal(rustix::process::Signal::TERM);
    until(&socket, "STOPPING=1");
}

#[cfg(feature = "fleet")]
#[test]
fn a_node_says_that_it_is_ready_and_alive_and_goes_on_after_a_hangup() {
    let dir = tempfile::tempdir().expect("a folder");
    let (socket, address) = systemd(dir.path());
    let at = dir.path().display();
    fs::create_dir(dir.path().join("bucket")).expect("made");
    let text = format!("store: 'file://{at}/bucket'\npool: p\nstate_dir: '{at}/state'\n");
    fs::write(dir.path().join("skewtrap.yaml"), text).expect("written");
    let environment = [("NOTIFY_SOCKET", address.as_str()), ("WATCHDOG_USEC", "400000")];
    let mut agent = Agent::with(
        dir.path(),
        &environment,
        &["--role", "node", "--node", "n1", "--config", "skewtrap.yaml"],
    );
    until(&socket, "READY=1");
    until(&socket, "WATCHDOG=1");
    agent.signal(rustix::process::Signal::HUP);
    agent.until("a node reads its configuration at its start only");
    until(&socket, "WATCHDOG=1");
    agent.signal(rustix::process::Signal::TERM);
    until(&socket, "STOPPING=1");
}
