//! Reads what the machine says of an engine's processes: how long each waited for a CPU, and how long its
//! cgroup was throttled. For a server on this machine whose processes the agent sees; elsewhere nothing is read.
//!
//! A turn reads three small files a rank every few seconds. All processes are looked through only where the
//! ranks' processes are not known or one of them is gone, and at most once a minute.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::Now;
use super::process;
use super::sender::ObservationSender;
use skewtrap_core::signal::catalog;
use skewtrap_core::signal::observation::{Observation, SourceId};
use skewtrap_core::signal::sample::{Sample, Signal, TargetId};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// Between two turns: a cause is looked for ten seconds after a firing, and needs one of them.
pub const EVERY: Duration = Duration::from_secs(3);
/// Between two looks through all processes.
const SEARCH_EVERY: Duration = Duration::from_secs(60);

/// Whose processes are read.
#[derive(Clone, Debug)]
pub struct Config {
    pub target: TargetId,
    /// The source's id.
    pub source: SourceId,
    /// The port on which it listens on this machine.
    pub port: u16,
}

/// What servers on this machine are called; behind another loopback address is a forwarder to another
/// machine, as a rule.
const LOCALHOST_4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOCALHOST_6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// The port of a server on this machine, as its address says: the machine's own name, or one of its addresses; `None`
/// where it is elsewhere.
pub fn port_here(url: &str) -> Option<u16> {
    let url = url.parse::<reqwest::Url>().ok()?;
    let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']');
    let is_here = match host.parse::<IpAddr>() {
        Ok(address) if address.is_loopback() => [LOCALHOST_4, LOCALHOST_6].contains(&address),
        // An address can be listened at only on the machine that has it.
        Ok(address) => UdpSocket::bind((address, 0)).is_ok(),
        Err(_) => host == "localhost" || rustix::system::uname().nodename().to_str() == Ok(host),
    };
    url.port_or_known_default().filter(|_| is_here)
}

/// The ranks of a server whose processes are seen below the one that listens at its address; `None` where
/// that is none of this machine.
pub fn ranks_of(url: &str) -> Option<Vec<Rank>> {
    let ranks_at = |port| process::listener(port).map(process::ranks_below).unwrap_or_default();
    port_here(url).map(|port| ranks_at(port).into_values().collect())
}

/// Reads until cancelled, or until nobody receives observations. Returns `true`: it is finished for good.
pub async fn run(config: Config, sender: ObservationSender, cancel: CancellationToken, now: Now) -> bool {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ranks: BTreeMap<u32, Rank> = BTreeMap::new();
    let mut searched: Option<Instant> = None;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return true,
            _ = ticks.tick() => {}
        }
        let (known, port, at) = (ranks.clone(), config.port, now());
        let may_search = searched.is_none_or(|then| then.elapsed() >= SEARCH_EVERY);
        // The files of /proc and of cgroups can be slow where the machine is in trouble.
        let read = crate::world::blocking(move || turn(known, port, may_search, at)).await;
        let Ok((found, has_searched, samples)) = read else { continue };
        ranks = found;
        if has_searched {
            searched = Some(Instant::now());
        }
        if samples.is_empty() {
            continue;
        }
        let Config { target, source, .. } = config;
        if sender.send(Observation::Host { target, source, samples, at }).await.is_err() {
            return true;
        }
    }
}

/// The ranks' processes, whether they were looked for, and what they show.
fn turn(
    mut ranks: BTreeMap<u32, Rank>,
    port: u16,
    may_search: bool,
    at: Time,
) -> (BTreeMap<u32, Rank>, bool, Vec<Sample>) {
    let is_gone = ranks.keys().any(|pid| !process::exists(*pid));
    let searches = may_search && (ranks.is_empty() || is_gone);
    if searches {
        ranks = process::listener(port).map(process::ranks_below).unwrap_or_default();
    }
    // One rank alone has no peers that its numbers could be compared with.
    let samples = if ranks.len() < 2 { Vec::new() } else { samples(&ranks, at) };
    (ranks, searches, samples)
}

fn samples(ranks: &BTreeMap<u32, Rank>, at: Time) -> Vec<Sample> {
    let mut samples = Vec::new();
    for (&pid, &rank) in ranks {
        let mut add = |signal: Signal, value: Option<f64>| {
            samples.extend(value.map(|value| Sample { rank, signal, value, at, extra: None }));
        };
        let text = |path: String| fs::read_to_string(path).ok();
        add(catalog::RUN_DELAY, text(format!("/proc/{pid}/schedstat")).as_deref().and_then(run_delay_s));
        let Some(folder) = text(format!("/proc/{pid}/cgroup")).as_deref().and_then(cgroup_of) else {
            continue;
        };
        add(catalog::THROTTLED, text(format!("{folder}/cpu.stat")).as_deref().and_then(throttled_s));
        add(catalog::CPU_PRESSURE, text(format!("{folder}/cpu.pressure")).as_deref().and_then(pressure_s));
    }
    samples
}

/// Of `/proc/PID/schedstat`: nanoseconds on a CPU, nanoseconds ready and waiting, time slices. It is the first
/// thread's, which is the engine's scheduler loop.
fn run_delay_s(text: &str) -> Option<f64> {
    text.split_whitespace().nth(1)?.parse::<f64>().ok().map(|ns| ns / 1e9)
}

/// The folder of a process's cgroup (version 2), as the agent sees it.
fn cgroup_of(text: &str) -> Option<String> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    // A process of another cgroup namespace is shown with a path that leads out of the tree.
    (!path.contains("..")).then(|| format!("/sys/fs/cgroup{}", path.trim_end_matches('/')))
}

fn throttled_s(text: &str) -> Option<f64> {
    let micros = text.lines().find_map(|line| line.strip_prefix("throttled_usec "))?;
    micros.trim().parse::<f64>().ok().map(|us| us / 1e6)
}

/// Of `cpu.pressure`: `some avg10=0.00 avg60=0.00 avg300=0.00 total=123`, in microseconds.
fn pressure_s(text: &str) -> Option<f64> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    some.split("total=").nth(1)?.trim().parse::<f64>().ok().map(|us| us / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_read() {
        assert_eq!(run_delay_s("72000000000 1500000000 42\n"), Some(1.5));
        assert_eq!(
            cgroup_of("0::/system.slice/sglang.service\n"),
            Some("/sys/fs/cgroup/system.slice/sglang.service".into())
        );
        assert_eq!(cgroup_of("0::/../../other\n"), None);
        assert_eq!(cgroup_of("4:cpu:/x\n"), None);
        assert_eq!(throttled_s("usage_usec 9\nnr_throttled 3\nthrottled_usec 2500000\n"), Some(2.5));
        assert_eq!(
            pressure_s("some avg10=1.00 avg60=0.50 avg300=0.10 total=4000000\nfull avg10=0 total=1\n"),
            Some(4.0)
        );
        assert_eq!((run_delay_s(""), throttled_s("usage_usec 9"), pressure_s("")), (None, None, None));
    }

    #[test]
    fn a_server_is_here_where_its_address_is_one_of_this_machine() {
        let name = rustix::system::uname();
        let name = name.nodename().to_str().expect("a host name");
        for here in ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", name] {
            assert_eq!(port_here(&format!("http://{here}:30000")), Some(30_000), "{here}");
        }
        for elsewhere in ["203.0.113.9", "127.0.1.7", "[2001:db8::1]", "gpu-7.example"] {
            assert_eq!(port_here(&format!("http://{elsewhere}:30000")), None, "{elsewhere}");
        }
    }

    #[test]
    fn a_process_that_runs_shows_how_long_it_waited() {
        let own = std::process::id();
        let ranks = [(own, Rank::dp(0)), (u32::MAX, Rank::dp(1))].into();
        let found = samples(&ranks, Time::default());
        let delay: Vec<Rank> =
            found.iter().filter(|s| s.signal == catalog::RUN_DELAY).map(|s| s.rank).collect();
        match fs::read_to_string("/proc/self/schedstat") {
            Ok(_) => assert_eq!(delay, [Rank::dp(0)], "what is gone shows nothing"),
            Err(_) => eprintln!("SKIPPED: this kernel has no /proc/PID/schedstat"),
        }
        assert!(process::exists(own) && !process::exists(u32::MAX));
    }
}
