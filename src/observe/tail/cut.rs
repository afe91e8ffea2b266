//! Cuts bytes into whole lines: a line is held until its newline, and its length is bounded.

use memchr::{memchr, memrchr};

use skewtrap_core::signal::log_reader::MAX_LINE;

/// Bytes that are kept of a longer line: one more than the limit, which shows that it was cut.
pub const KEPT: usize = MAX_LINE + 1;
/// Bytes that may be fed at once: so few that only the first line among them can be too long.
pub const CHUNK: usize = MAX_LINE;

/// Holds the line that is not complete yet.
#[derive(Debug, Default)]
pub struct LineSplitter {
    partial: Vec<u8>,
    skip: Option<Skip>,
    long_lines: u64,
}

/// Why bytes up to the next newline are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skip {
    /// The line was cut.
    TooLong,
    /// Reading began in the middle of it.
    Joined,
}

impl LineSplitter {
    /// For reading that begins in the middle of a line: the rest of that line is dropped.
    pub fn inside_a_line() -> Self {
        Self { skip: Some(Skip::Joined), ..Self::default() }
    }

    /// Takes at most `CHUNK` bytes and appends whole lines, each with its newline, to `out`.
    pub fn feed(&mut self, mut chunk: &[u8], out: &mut Vec<u8>) {
        debug_assert!(chunk.len() <= CHUNK, "only the first line of a chunk is measured");
        if self.skip.is_some() {
            let Some(end) = memchr(b'\n', chunk) else { return };
            chunk = &chunk[end + 1..];
            self.skip = None;
        }
        let (Some(first), Some(last)) = (memchr(b'\n', chunk), memrchr(b'\n', chunk)) else {
            return self.hold(chunk, out);
        };
        if self.partial.len() + first > MAX_LINE {
            let room = KEPT - self.partial.len();
            self.partial.extend_from_slice(&chunk[..room]);
            self.finish(out);
            self.long_lines += 1;
            out.extend_from_slice(&chunk[first + 1..=last]);
        } else {
            out.append(&mut self.partial);
            out.extend_from_slice(&chunk[..=last]);
        }
        self.hold(&chunk[last + 1..], out);
    }

    /// Nothing more will be fed: what is held counts as a line.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            self.finish(out);
        }
        self.skip = None;
    }

    /// Lines that were cut so far.
    pub fn long_lines(&self) -> u64 {
        self.long_lines
    }

    fn hold(&mut self, rest: &[u8], out: &mut Vec<u8>) {
        let room = KEPT - self.partial.len();
        self.partial.extend_from_slice(&rest[..rest.len().min(room)]);
        if rest.len() >= room {
            self.finish(out);
            self.long_lines += 1;
            self.skip = Some(Skip::TooLong);
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.partial);
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(chunks: &[&[u8]]) -> (Vec<u8>, LineSplitter) {
        let (mut cutter, mut out) = (LineSplitter::default(), Vec::new());
        chunks.iter().for_each(|c| cutter.feed(c, &mut out));
        (out, cutter)
    }

    #[test]
    fn a_line_is_held_until_its_newline() {
        let (mut out, mut cutter) = cut(&[b"li", b"ne 0\nline ", b"1\n", b"rest"]);
        assert_eq!(out, b"line 0\nline 1\n");
        cutter.flush(&mut out);
        assert_eq!(out, b"line 0\nline 1\nrest\n");
    }

    #[test]
    fn a_stream_joined_inside_a_line_begins_with_the_next() {
        let (mut cutter, mut out) = (LineSplitter::inside_a_line(), Vec::new());
        cutter.feed(b"torn", &mut out);
        cutter.feed(b" end\nwhole\n", &mut out);
        assert_eq!((out.as_slice(), cutter.long_lines()), (&b"whole\n"[..], 0));
    }

    #[test]
    fn a_line_without_end_is_cut_once_and_takes_no_memory() {
        let block = vec![b'x'; CHUNK];
        let mut chunks: Vec<&[u8]> = vec![b"before\n"];
        chunks.extend(std::iter::repeat_n(block.as_slice(), 100));
        chunks.push(b"end\nafter\n");
        let (out, cutter) = cut(&chunks);
        assert_eq!(out.len(), b"before\n".len() + KEPT + 1 + b"after\n".len());
        assert!(out.ends_with(b"x\nafter\n"));
        assert_eq!(cutter.long_lines(), 1);
        assert!(cutter.partial.capacity() <= 2 * MAX_LINE);
    }

    proptest! {
        #[test]
        fn however_the_bytes_come_the_lines_are_the_same(
            lines in proptest::collection::vec((0_usize..3, 0_usize..40, any::<u8>()), 0..8),
            cuts in proptest::collection::vec(1_usize..CHUNK, 1..40),
        ) {
            let mut bytes = Vec::new();
            let mut wanted = Vec::new();
            for (size, extra, fill) in lines {
                let len = [extra, MAX_LINE - 20 + extra, 3 * MAX_LINE][size];
                let line = vec![if fill == b'\n' { b' ' } else { fill }; len];
                wanted.extend_from_slice(&line[..len.min(KEPT)]);
                wanted.push(b'\n');
                bytes.extend(line);
                bytes.push(b'\n');
            }
            let (mut cutter, mut out, mut rest) = (LineSplitter::default(), Vec::new(), bytes.as_slice());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                cutter.feed(now, &mut out);
                rest = later;
            }
            prop_assert_eq!(out, wanted);
        }
    }
}
