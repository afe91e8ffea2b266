//! Looks processes up in `/proc`: which one listens on a port, its parents, its rank, and since when
//! nsys collects.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use skewtrap_core::capture::nsys::Process;
use skewtrap_trace::rank::{Axis, Rank};
use skewtrap_trace::time::Time;

/// The longest chain of parents; more than any launcher nests.
const DEPTH: usize = 64;

/// The process that listens on a local TCP port, as far as the agent may see it.
pub fn listener(port: u16) -> Option<u32> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .flat_map(|table| sockets(Path::new(table), port))
        .collect();
    pids().find(|pid| {
        let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        links.filter_map(|link| fs::read_link(link.path()).ok()).any(|to| {
            to.to_str()
                .and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']'))
                .is_some_and(|inode| inodes.iter().any(|i| i == inode))
        })
    })
}

/// Inodes of the sockets that listen on `port`.
fn sockets(table: &Path, port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    let text = fs::read_to_string(table).unwrap_or_default();
    let inode = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let local = words.get(1)?.rsplit(':').next()?;
        let matches = u16::from_str_radix(local, 16) == Ok(port) && *words.get(3)? == LISTEN;
        matches.then(|| words.get(9).map(|&i| i.to_owned()))?
    };
    text.lines().filter_map(inode).collect()
}

/// A process and its parents, nearest first.
pub fn ancestors(pid: u32) -> Vec<Process> {
    let mut found = Vec::new();
    let mut next = Some(pid);
    while let Some(pid) = next.filter(|pid| *pid > 0 && found.len() < DEPTH) {
        found.push(process(pid));
        next = parent(pid);
    }
    found
}

fn process(pid: u32) -> Process {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok();
    let of = |name| environment.as_deref().and_then(|bytes| value_of(bytes, name));
    Process {
        pid,
        argv: argv(pid),
        session_id: of("NSYS_PROFILING_SESSION_ID"),
        user: fs::metadata(format!("/proc/{pid}")).ok().map(|m| m.uid()),
        tmpdir: environment.is_some().then(|| of("TMPDIR").unwrap_or_else(|| "/tmp".into())),
    }
}

fn argv(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|b| *b == 0)
        .filter(|a| !a.is_empty())
        .map(|a| String::from_utf8_lossy(a).into_owned())
        .collect()
}

/// The processes with `name=value` in their environment, as far as the agent may read it.
pub fn marked(name: &str, value: &str) -> Vec<u32> {
    let has_variable = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        value_of(&environment, name).is_some_and(|found| found == value)
    };
    pids().filter(has_variable).collect()
}

/// Whether a process runs that has `word` among its arguments.
pub fn runs_with(word: &str) -> bool {
    pids().any(|pid| argv(pid).iter().any(|a| a == word))
}

/// When the current collection of an nsys session began. From then on the session's agent holds the
/// file open that it collects into (`nsys-report-41c9.qdstrm`), so the file's time of creation is that
/// of the collection. `None` when this cannot be seen: the processes are another user's, the file system
/// keeps no times of creation, or this nsys works differently.
pub fn collecting_since(session: &str) -> Option<Time> {
    let name = format!("--session-name={session}");
    let is_agent = |argv: &[String]| argv.iter().any(|a| a == "--start-agent") && argv.contains(&name);
    // Containers that share a process namespace may each have a session of this name.
    let [agent] = pids().filter(|pid| is_agent(&argv(*pid))).collect::<Vec<_>>()[..] else { return None };
    let files = fs::read_dir(format!("/proc/{agent}/fd")).ok()?.flatten().map(|entry| entry.path());
    let is_collected =
        |link: &PathBuf| fs::read_link(link).is_ok_and(|to| to.extension().is_some_and(|e| e == "qdstrm"));
    let [file] = &files.filter(is_collected).collect::<Vec<_>>()[..] else { return None };
    let born = fs::metadata(file).ok()?.created().ok()?;
    Some(Time::from_nanos(i64::try_from(born.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok()?))
}

/// Whether a process is there.
pub fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn value_of(environment: &[u8], name: &str) -> Option<String> {
    let prefix = format!("{name}=");
    let found = environment.split(|b| *b == 0).find_map(|pair| pair.strip_prefix(prefix.as_bytes()))?;
    Some(String::from_utf8_lossy(found).into_owned())
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}

fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The rank of each process below `root`: engines write it into their process title
/// (`sglang::scheduler_DP1_TP0`, `VLLM::EngineCore_DP1`).
pub fn ranks_below(root: u32) -> BTreeMap<u32, Rank> {
    let is_below = |pid: u32| ancestors(pid).iter().any(|p| p.pid == root);
    pids()
        .filter_map(|pid| Some((pid, rank_of_title(argv(pid).first()?)?)))
        .filter(|(pid, _)| is_below(*pid))
        .collect()
}

fn rank_of_title(title: &str) -> Option<Rank> {
    let engine = ["sglang::scheduler", "VLLM::"].iter().any(|front| title.starts_with(front));
    let rank = title.split(['_', ' ', ':']).fold(Rank::NONE, |rank, word| {
        let letters = word.trim_end_matches(|c: char| c.is_ascii_digit());
        match (Axis::of_word(letters.as_bytes()), word[letters.len()..].parse()) {
            (Some(axis), Ok(index)) => rank.with(axis, index),
            _ => rank,
        }
    });
    engine.then_some(rank)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_listener_is_found_by_its_port_and_its_parents_by_its_number() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let pid = listener(socket.local_addr().unwrap().port());
        assert_eq!(pid, Some(std::process::id()));
        let ancestors = ancestors(std::process::id());
        assert!(ancestors.len() > 1 && ancestors[0].pid == std::process::id());
        drop(socket);
    }

    #[test]
    fn a_collection_began_when_the_file_that_its_sessions_agent_writes_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let (file, session) =
            (dir.path().join("nsys-report-1.qdstrm"), format!("probe-{}", std::process::id()));
        let (argument, before) = (format!("--session-name={session}"), SystemTime::now());
        let mut agent = std::process::Command::new("sh")
            .args(["-c", "exec 3>\"$0\"; read x"])
            .arg(&file)
            .args(["--start-agent", &argument])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        while !file.exists() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let known = fs::metadata(&file).unwrap().created().is_ok();
        let since = collecting_since(&session);
        assert!(runs_with(&argument) && collecting_since("another").is_none());
        drop(agent.stdin.take());
        agent.wait().unwrap();
        assert!(!runs_with(&argument) && collecting_since(&session).is_none());
        let Some(since) = since.filter(|_| known) else {
            eprintln!("SKIPPED: when a file was made (this file system does not keep it)");
            return;
        };
        let before = before.duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((since.epoch_s() - before).abs() < 2.0, "{since}");
    }

    #[test]
    fn a_title_names_a_rank() {
        assert_eq!(rank_of_title("sglang::scheduler_DP1_TP0"), Some(Rank::dp(1).with(Axis::Tp, 0)));
        assert_eq!(rank_of_title("VLLM::EngineCore_DP3"), Some(Rank::dp(3)));
        assert_eq!(rank_of_title("python3"), None);
    }
}
