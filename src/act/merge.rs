//! Merges the ranks' traces of a window into one file to look at, as `merge_profiles` means it: done
//! here, after verification, because the server stops serving while it does it, and drops peers.
//!
//! Events pass one by one; each process is named after its rank, so that equal numbers of different
//! ranks stay apart. One rank's text is in memory at a time. A trace that cannot be read is named.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// No rank's text is read beyond this: a merged view of more is of no use to anybody.
const MOST: u64 = 1 << 30;

/// The part of a trace that is merged.
#[derive(Deserialize)]
struct Events<'a> {
    #[serde(rename = "traceEvents", borrow)]
    events: Vec<&'a RawValue>,
    #[serde(rename = "baseTimeNanoseconds", default)]
    base: Option<i64>,
}

/// What a merge brought.
#[derive(Debug, PartialEq, Eq)]
pub struct Merged {
    /// How many events.
    pub events: usize,
    /// Traces that could not be read, with the reason.
    pub left_out: Vec<String>,
}

/// Writes the traces `parts` (a name for the rank, and its file) into one gzip file at `target`,
/// which appears whole or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn merge(parts: &[(String, PathBuf)], target: &Path) -> io::Result<Merged> {
    let partial = target.with_extension("partial");
    let file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
    let mut out = GzEncoder::new(BufWriter::new(file), Compression::fast());
    let mut merged = Merged { events: 0, left_out: Vec::new() };
    let mut base = None;
    out.write_all(b"{\"traceEvents\":[")?;
    for (rank, path) in parts {
        match text_of(path) {
            Ok(text) => add(&mut out, rank, &text, &mut base, &mut merged)?,
            Err(error) => merged.left_out.push(format!("{rank}: {error}")),
        }
    }
    write!(out, "]")?;
    if let Some(base) = base {
        write!(out, ",\"baseTimeNanoseconds\":{base}")?;
    }
    out.write_all(b"}\n")?;
    out.finish()?.into_inner()?.sync_all()?;
    fs::rename(&partial, target)?;
    Ok(merged)
}

fn text_of(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = MultiGzDecoder::new(File::open(path)?).take(MOST).read_to_string(&mut text)?;
    if read as u64 == MOST {
        return Err(io::Error::other("it is larger than 1 GiB"));
    }
    Ok(text)
}

fn add(
    out: &mut impl Write,
    rank: &str,
    text: &str,
    base: &mut Option<i64>,
    merged: &mut Merged,
) -> io::Result<()> {
    let events = match serde_json::from_str::<Events<'_>>(text) {
        // Times count from a base; ranks of one host share it.
        Ok(events) if base.is_some() && events.base.is_some() && *base != events.base => {
            merged.left_out.push(format!("{rank}: its times count from another base"));
            return Ok(());
        }
        Ok(events) => events,
        Err(error) => {
            merged.left_out.push(format!("{rank}: {error}"));
            return Ok(());
        }
    };
    *base = base.or(events.base);
    for raw in events.events {
        let mut event: Value = serde_json::from_str(raw.get())?;
        if let Some(pid) = event.get_mut("pid") {
            *pid = Value::String(format!(
                "[{rank}] {}",
                pid.as_str().map_or_else(|| pid.to_string(), str::to_owned)
            ));
        }
        if merged.events > 0 {
            out.write_all(b",")?;
        }
        serde_json::to_writer(&mut *out, &event)?;
        merged.events += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        let mut out = GzEncoder::new(File::create(&path).unwrap(), Compression::fast());
        out.write_all(text.as_bytes()).unwrap();
        out.finish().unwrap();
        path
    }

    #[test]
    fn ranks_keep_apart_and_an_unreadable_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let event =
            r#"{"traceEvents":[{"ph":"X","pid":0,"tid":7,"ts":12.5,"name":"k"}],"baseTimeNanoseconds":5}"#;
        let parts = [
            ("DP0".to_owned(), trace(dir.path(), "a.gz", event)),
            ("DP1".to_owned(), trace(dir.path(), "b.gz", event)),
            ("DP2".to_owned(), trace(dir.path(), "c.gz", "{\"traceEvents\":[")),
        ];
        let target = dir.path().join("merged-x.trace.json.gz");
        let merged = merge(&parts, &target).unwrap();
        assert_eq!((merged.events, merged.left_out.len()), (2, 1));
        assert!(merged.left_out[0].starts_with("DP2: "));
        let whole: Value = serde_json::from_str(&text_of(&target).unwrap()).unwrap();
        assert_eq!(whole["baseTimeNanoseconds"], 5);
        let pids: Vec<&str> =
            whole["traceEvents"].as_array().unwrap().iter().map(|e| e["pid"].as_str().unwrap()).collect();
        assert_eq!(pids, ["[DP0] 0", "[DP1] 0"]);
    }
}
