//! Standard input as a log.

use std::io::Read;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Config;
use super::cut::{CHUNK, LineSplitter};
use crate::observe::Now;
use crate::observe::sender::ObservationSender;
use skewtrap_core::signal::log_reader::Arrival;
use skewtrap_core::signal::observation::{Observation, Problem};
use skewtrap_core::signal::sample::Source;

/// Standard input is read on a thread of its own, because a read of it cannot be interrupted.
pub(super) async fn follow(
    config: Config,
    sender: ObservationSender,
    cancel: CancellationToken,
    now: Now,
) -> bool {
    let Config { target, source, .. } = config;
    let (chunks, mut lines_of) = mpsc::channel::<Vec<u8>>(8);
    std::thread::spawn(move || read_all(&mut std::io::stdin().lock(), &chunks));
    loop {
        let lines = tokio::select! {
            () = cancel.cancelled() => return true,
            lines = lines_of.recv() => lines,
        };
        let at = (now)();
        let observation = match lines {
            Some(lines) => Observation::Lines { target, source, lines, arrival: Arrival::Live(at) },
            None => {
                Observation::State { target, source, kind: Source::Log, problem: Some(Problem::Ended), at }
            }
        };
        let is_last = matches!(observation, Observation::State { .. });
        if sender.send(observation).await.is_err() || is_last {
            return true;
        }
    }
}

fn read_all(input: &mut impl Read, chunks: &mpsc::Sender<Vec<u8>>) {
    let (mut cutter, mut buffer) = (LineSplitter::default(), vec![0; CHUNK]);
    loop {
        let read = match input.read(&mut buffer) {
            Ok(read) => read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        let mut lines = Vec::new();
        if read == 0 {
            cutter.flush(&mut lines);
        } else {
            cutter.feed(&buffer[..read], &mut lines);
        }
        let is_over = !lines.is_empty() && chunks.blocking_send(lines).is_err();
        if is_over || read == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_input_gives_whole_lines_and_its_rest_at_the_end() {
        let (chunks, mut lines) = mpsc::channel(8);
        read_all(&mut &b"one\ntwo\nrest"[..], &chunks);
        drop(chunks);
        let mut all = Vec::new();
        while let Some(more) = lines.blocking_recv() {
            all.extend(more);
        }
        assert_eq!(all, b"one\ntwo\nrest\n");
    }
}
