//! Reads the profiling lines from the end of a log: an agent that is started again must know which
//! windows opened and closed in the meantime.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use memchr::memchr;

use skewtrap_core::capture::line::ProfileLine;
use skewtrap_core::signal::fields::Fields;
use skewtrap_core::signal::log_line::LineContent;
use skewtrap_core::signal::log_reader::MAX_LINE;
use skewtrap_core::signal::sglang_line;
use skewtrap_trace::rank::Rank;

/// Bytes that are read from the end of a log: some hours of a busy server.
const TAIL: u64 = 16 << 20;
/// Bytes that are held of it at once.
const PIECE: usize = 256 << 10;
/// The most lines that are kept; the newest matter.
const MOST: usize = 4096;

type Lines = Vec<(Rank, ProfileLine)>;

/// The profiling lines in the last 16 MiB of a log, oldest first, and the position where its last line ends;
/// with `since`, only what was written behind that byte, unless the log was begun anew since.
/// Read on a thread that may block.
///
/// # Errors
/// The log cannot be read.
pub async fn recent(log: &Path, since: Option<u64>) -> io::Result<(Lines, u64)> {
    blocking(log, move |log| {
        let length = std::fs::metadata(log)?.len();
        let since = since.filter(|since| *since <= length).unwrap_or_default();
        read(log, since.max(length.saturating_sub(TAIL)))
    })
    .await
}

/// The profiling lines from the byte `from` on, and the position where the last whole line ends.
/// Read on a thread that may block.
///
/// # Errors
/// The log cannot be read.
pub async fn after(log: &Path, from: u64) -> io::Result<(Lines, u64)> {
    blocking(log, move |log| read(log, from)).await
}

async fn blocking<T: Send + 'static>(
    log: &Path,
    read: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let log = log.to_owned();
    crate::world::blocking(move || read(&log)).await.unwrap_or_else(|e| Err(io::Error::other(e)))
}

fn read(log: &Path, from: u64) -> io::Result<(Lines, u64)> {
    let mut file = File::open(log)?;
    // A log that is shorter was begun anew.
    let from = if file.metadata()?.len() < from { 0 } else { from };
    file.seek(SeekFrom::Start(from))?;
    let mut reading = BufReader::with_capacity(PIECE, file.take(TAIL));
    let (mut lines, mut end, mut line) = (Lines::new(), from, Vec::new());
    loop {
        line.clear();
        let length = read_line(&mut reading, &mut line)?;
        if length == 0 {
            return Ok((lines, end));
        }
        end += length;
        let seen = sglang_line::read(&line, &mut Fields::default());
        if let LineContent::Profile(profile) = &seen.content {
            lines.push((seen.rank, ProfileLine::from(&**profile)));
        }
        if lines.len() == 2 * MOST {
            lines.drain(..MOST);
        }
    }
}

/// The next line, of which at most [`MAX_LINE`] bytes are kept, and how many bytes it is long with its
/// newline; 0 where no whole line is left.
fn read_line(reading: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<u64> {
    let mut length = 0;
    loop {
        let piece = reading.fill_buf()?;
        if piece.is_empty() {
            return Ok(0);
        }
        let end = memchr(b'\n', piece);
        let part = &piece[..end.unwrap_or(piece.len())];
        line.extend_from_slice(&part[..part.len().min(MAX_LINE - line.len())]);
        let taken = end.map_or(piece.len(), |end| end + 1);
        length += taken as u64;
        reading.consume(taken);
        if end.is_some() {
            return Ok(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_profiling_lines_are_told_with_their_ranks() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("server.log");
        let text = "[2026-11-24 03:48:53 DP2] Profiling starts. Traces will be saved to: /p/x (with profile id: 17.5)\n\
                    [2026-11-24 03:48:53 DP2] Decode batch, #running-req: 12, #token: 8, token usage: 0.1\n\
                    [2026-11-24 03:48:54 DP2] Stop profiling...\n\
                    [2026-11-24 03:48:55 DP2] Profiling done. Traces are saved to: /p/x\n";
        std::fs::write(&log, text).unwrap();
        let starts = ProfileLine::Starts { dir: "/p/x".into(), id: Some("17.5".into()) };
        let done = ProfileLine::Done { dir: "/p/x".into() };
        let (lines, end) = recent(&log, None).await.unwrap();
        assert_eq!(end, text.len() as u64);
        assert_eq!(
            lines,
            [(Rank::dp(2), starts), (Rank::dp(2), ProfileLine::Stops), (Rank::dp(2), done.clone())]
        );
        let last = text.trim_end().rfind('\n').unwrap() as u64 + 1;
        assert_eq!(recent(&log, Some(last)).await.unwrap().0, [(Rank::dp(2), done)]);
        assert_eq!(recent(&log, Some(end + 1)).await.unwrap().0.len(), 3, "it was begun anew");
        assert_eq!(after(&log, end + 1).await.unwrap().0.len(), 3, "it was begun anew");
    }

    #[tokio::test]
    async fn lines_of_any_length_and_number_take_bounded_memory_and_the_newest_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("server.log");
        let mut text = vec![b'x'; 3 * PIECE];
        text.push(b'\n');
        for number in 0..3 * MOST {
            text.extend(
                format!("[2026-11-24 03:48:55 DP2] Profiling done. Traces are saved to: /p/{number}\n")
                    .bytes(),
            );
        }
        let whole = text.len() as u64;
        text.extend(b"[2026-11-24 03:48:55 DP2] Profiling do");
        std::fs::write(&log, text).unwrap();
        let (lines, end) = recent(&log, None).await.unwrap();
        assert_eq!(end, whole, "what is not written to its end is read the next time");
        assert!((MOST..2 * MOST).contains(&lines.len()), "{}", lines.len());
        let last = format!("/p/{}", 3 * MOST - 1);
        assert!(matches!(&lines.last().unwrap().1, ProfileLine::Done { dir } if *dir == last));
        assert_eq!(after(&log, end).await.unwrap(), (Vec::new(), end));
    }
}
