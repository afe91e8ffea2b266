//! Merges the traces of a window's ranks into one file for a viewer, as `merge_profiles` asks. It is done
//! here, after verification, because the server stops serving while it merges, and leaves ranks out.
//!
//! Events are copied one by one, so that memory does not grow with the traces. Each process id gets its
//! rank as a prefix, so that equal ids of different ranks stay apart. Each trace is read twice: one that
//! is not complete, or counts its times from another base, is reported and adds no events.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

#[derive(Deserialize)]
struct CompleteTrace {
    #[serde(rename = "traceEvents")]
    _events: IgnoredAny,
    #[serde(rename = "baseTimeNanoseconds", default)]
    base: Option<i64>,
}

/// The result of a merge.
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
        match base_of(path) {
            // Times count from a base; ranks of one host share it.
            Ok(of) if base.is_some() && of.is_some() && base != of => {
                merged.left_out.push(format!("{rank}: its times count from another base"));
            }
            Ok(of) => {
                base = base.or(of);
                let mut json = reader(path)?;
                Events { out: &mut out, rank, written: &mut merged.events }.deserialize(&mut json)?;
            }
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

type Json = serde_json::Deserializer<serde_json::de::IoRead<BufReader<MultiGzDecoder<BufReader<File>>>>>;

fn reader(path: &Path) -> io::Result<Json> {
    let file = MultiGzDecoder::new(BufReader::new(File::open(path)?));
    Ok(serde_json::Deserializer::from_reader(BufReader::with_capacity(64 << 10, file)))
}

/// The time base of a trace; an error if the trace is not complete.
fn base_of(path: &Path) -> io::Result<Option<i64>> {
    let mut json = reader(path)?;
    let trace = CompleteTrace::deserialize(&mut json)?;
    json.end()?;
    Ok(trace.base)
}

/// Writes the events of a trace while it is read.
struct Events<'a, W> {
    out: &'a mut W,
    rank: &'a str,
    written: &'a mut usize,
}

impl<W: Write> Events<'_, W> {
    fn add(&mut self, mut event: Value) -> io::Result<()> {
        if let Some(pid) = event.get_mut("pid") {
            let own = pid.as_str().map_or_else(|| pid.to_string(), str::to_owned);
            *pid = Value::String(format!("[{}] {own}", self.rank));
        }
        if *self.written > 0 {
            self.out.write_all(b",")?;
        }
        serde_json::to_writer(&mut *self.out, &event)?;
        *self.written += 1;
        Ok(())
    }
}

impl<'de, W: Write> DeserializeSeed<'de> for Events<'_, W> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

/// Visits the trace's object, its list of events, and each event in it.
impl<'de, W: Write> Visitor<'de> for Events<'_, W> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a trace with a list of events")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut trace: M) -> Result<(), M::Error> {
        let Self { out, rank, written } = self;
        while let Some(key) = trace.next_key::<String>()? {
            if key == "traceEvents" {
                trace.next_value_seed(Events { out: &mut *out, rank, written: &mut *written })?;
            } else {
                trace.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<S: SeqAccess<'de>>(mut self, mut events: S) -> Result<(), S::Error> {
        while let Some(event) = events.next_element::<Value>()? {
            self.add(event).map_err(S::Error::custom)?;
        }
        Ok(())
    }
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
        let event = r#"{"traceEvents":[{"ph":"X","pid":0,"tid":7,"ts":4635132729409.079,"name":"k"}],"baseTimeNanoseconds":5}"#;
        let parts = [
            ("DP0".to_owned(), trace(dir.path(), "a.gz", event)),
            ("DP1".to_owned(), trace(dir.path(), "b.gz", event)),
            ("DP2".to_owned(), trace(dir.path(), "c.gz", &event[..event.len() - 1])),
            ("DP3".to_owned(), trace(dir.path(), "d.gz", &event.replace(":5}", ":6}"))),
        ];
        let target = dir.path().join("merged-x.trace.json.gz");
        let merged = merge(&parts, &target).unwrap();
        assert_eq!((merged.events, merged.left_out.len()), (2, 2));
        assert!(merged.left_out[0].starts_with("DP2: EOF"), "{:?}", merged.left_out);
        assert_eq!(merged.left_out[1], "DP3: its times count from another base");
        let whole: Value = Value::deserialize(&mut reader(&target).unwrap()).unwrap();
        assert_eq!(whole["traceEvents"][1]["ts"].to_string(), "4635132729409.079");
        assert_eq!(whole["baseTimeNanoseconds"], 5);
        let pids: Vec<&str> =
            whole["traceEvents"].as_array().unwrap().iter().map(|e| e["pid"].as_str().unwrap()).collect();
        assert_eq!(pids, ["[DP0] 0", "[DP1] 0"]);
    }
}
