//! Reads the profiling lines from the end of a log: an agent that is started again must know which
//! windows opened and closed in the meantime.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use skewtrap_core::capture::line::ProfileLine;
use skewtrap_core::signal::fields::Fields;
use skewtrap_core::signal::log_line::LineContent;
use skewtrap_core::signal::sglang_line;
use skewtrap_trace::rank::Rank;

/// Bytes that are read from the end of a log: some hours of a busy server.
const TAIL: u64 = 16 << 20;

/// The profiling lines in the last 16 MiB of a log, oldest first, and the position where its last line ends.
///
/// # Errors
/// The log cannot be read.
pub fn recent(log: &Path) -> io::Result<(Vec<(Rank, ProfileLine)>, u64)> {
    let from = std::fs::metadata(log)?.len().saturating_sub(TAIL);
    after(log, from)
}

/// The profiling lines from the byte `from` on, and the position where the last whole line ends.
///
/// # Errors
/// The log cannot be read.
pub fn after(log: &Path, from: u64) -> io::Result<(Vec<(Rank, ProfileLine)>, u64)> {
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    let end = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let mut fields = Fields::default();
    let mut lines = Vec::new();
    for line in bytes[..end].split(|b| *b == b'\n') {
        let read = sglang_line::read(line, &mut fields);
        if let LineContent::Profile(profile) = &read.content {
            lines.push((read.rank, ProfileLine::from(&**profile)));
        }
    }
    Ok((lines, from + end as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_profiling_lines_are_told_with_their_ranks() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("server.log");
        let text = "[2026-11-24 03:48:53 DP2] Profiling starts. Traces will be saved to: /p/x (with profile id: 17.5)\n\
                    [2026-11-24 03:48:53 DP2] Decode batch, #running-req: 12, #token: 8, token usage: 0.1\n\
                    [2026-11-24 03:48:54 DP2] Stop profiling...\n\
                    [2026-11-24 03:48:55 DP2] Profiling done. Traces are saved to: /p/x\n";
        std::fs::write(&log, text).unwrap();
        let starts = ProfileLine::Starts { dir: "/p/x".into(), id: Some("17.5".into()) };
        let done = ProfileLine::Done { dir: "/p/x".into() };
        let (lines, end) = recent(&log).unwrap();
        assert_eq!(end, text.len() as u64);
        assert_eq!(lines, [(Rank::dp(2), starts), (Rank::dp(2), ProfileLine::Stops), (Rank::dp(2), done)]);
    }
}
