//! Proxies of the environment: what is on this machine is asked without them.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::agent::skewtrap;

/// A listener that answers 403 to everything, and the first lines of what it was asked.
fn recording() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = listener.local_addr().expect("bound");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let asked = seen.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut line = String::new();
            let read = BufReader::new(&stream).read_line(&mut line);
            if read.is_ok() && !line.is_empty() {
                asked.lock().expect("whole").push(line);
            }
            // Whoever asked may be gone.
            let _ =
                stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    (at, seen)
}

#[test]
fn what_is_on_this_machine_is_asked_without_a_proxy_and_the_rest_through_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let ((proxy, through), (agent, direct)) = (recording(), recording());
    for name in ["HTTP_PROXY", "ALL_PROXY"] {
        let ask = |address: &str| {
            let mut command = skewtrap(dir.path());
            for other in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"] {
                command.env_remove(other);
            }
            command.env(name, format!("http://{proxy}")).env("NO_PROXY", "example.com");
            command.env("SKEWTRAP_TOKEN", "t0ken").args(["status", "--agent", address]);
            let output = command.output().expect("it runs");
            assert!(!output.status.success());
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        for host in ["127.0.0.1", "localhost"] {
            let said = ask(&format!("http://{host}:{}", agent.port()));
            assert_eq!(*through.lock().expect("whole"), Vec::<String>::new(), "{name} {host}: {said}");
        }
        assert_eq!(direct.lock().expect("whole").drain(..).count(), 2);
        // An address for documentation, at which nobody is.
        ask("http://192.0.2.1:9464");
        let seen: Vec<String> = through.lock().expect("whole").drain(..).collect();
        assert!(matches!(&seen[..], [line] if line.starts_with("GET http://192.0.2.1:9464/")), "{seen:?}");
    }
}
