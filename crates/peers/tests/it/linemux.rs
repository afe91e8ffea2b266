//! linemux beside our reader, on a rotation that every log sees: the reason for ours, kept where
//! anybody can run it. That it loses lines is shown, not demanded: should it pass, the choice can
//! be reversed.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use linemux::MuxedLines;
use skewtrap::observe::sender::observation_channel;
use skewtrap::observe::tail;
use skewtrap_core::signal::observation::{Observation, SourceId};
use skewtrap_core::signal::sample::TargetId;
use skewtrap_trace::time::Time;
use tokio_util::sync::CancellationToken;

const BEFORE: usize = 10;
const AFTER: usize = 20;
/// A reader that has not delivered by then will not.
const PATIENCE: Duration = Duration::from_secs(2);

fn write(path: &Path, lines: usize) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).expect("writable");
    for _ in 0..lines {
        file.write_all(b"a line\n").expect("written");
    }
}

/// Ten lines, rename, a new file at once, twenty lines in it.
fn rotate(path: &Path) {
    fs::rename(path, path.with_extension("1")).expect("renamed");
    write(path, AFTER);
}

async fn ours(path: &Path) -> usize {
    let (sender, mut rx) = observation_channel(16, 1 << 20);
    let config =
        tail::Config { target: TargetId(0), source: SourceId(0), path: path.to_owned(), from_start: true };
    let cancel = CancellationToken::new();
    let task = tokio::spawn(tail::run(vec![config], sender, cancel.clone(), Arc::new(Time::default)));
    let (mut lines, mut rotated) = (0, false);
    while lines < BEFORE + AFTER {
        match tokio::time::timeout(PATIENCE, rx.recv()).await {
            Ok(Some(seen)) => {
                for observation in &seen.observations {
                    if let Observation::Lines { lines: more, .. } = observation {
                        lines += more.split(|b| *b == b'\n').count() - 1;
                    }
                }
            }
            Ok(None) | Err(_) => break,
        }
        if lines == BEFORE && !std::mem::replace(&mut rotated, true) {
            rotate(path);
        }
    }
    cancel.cancel();
    task.await.expect("it ends");
    lines
}

async fn linemux(path: &Path) -> usize {
    let mut lines = MuxedLines::new().expect("notices are to be had");
    lines.add_file_from_start(path).await.expect("the file is there");
    let mut came = 0;
    while came < BEFORE + AFTER {
        match tokio::time::timeout(PATIENCE, lines.next_line()).await {
            Ok(Ok(Some(_))) => came += 1,
            _ => break,
        }
        if came == BEFORE {
            rotate(path);
        }
    }
    came
}

#[tokio::test]
async fn a_rename_rotation_loses_nothing_here_and_what_it_loses_there_is_shown() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two) = (folder.path().join("ours.log"), folder.path().join("linemux.log"));
    write(&one, BEFORE);
    write(&two, BEFORE);
    let (ours, theirs) = (ours(&one).await, linemux(&two).await);
    eprintln!("of {} lines ours delivered {ours}, linemux {theirs}", BEFORE + AFTER);
    assert_eq!(ours, BEFORE + AFTER);
}
