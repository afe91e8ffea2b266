//! The part of a stream that is looked at: a buffer that moves on, and grows for one long value up
//! to a bound. How the stream ended is remembered in words.

use std::io::Read;

use super::scan;

/// The size of the buffer, in bytes.
const BUFFER: usize = 256 << 10;

/// The part of the stream that is looked at.
pub struct Window<R> {
    reader: R,
    buf: Vec<u8>,
    from: usize,
    to: usize,
    passed: u64,
    ended: Option<String>,
}

impl<R: Read> Window<R> {
    /// A stream of which nothing was read yet.
    pub fn new(reader: R) -> Self {
        Self { reader, buf: vec![0; BUFFER], from: 0, to: 0, passed: 0, ended: None }
    }

    /// What was read and not yet passed.
    pub fn data(&self) -> &[u8] {
        &self.buf[self.from..self.to]
    }

    /// How many bytes were passed.
    pub fn offset(&self) -> u64 {
        self.passed + self.from as u64
    }

    /// Passes `n` bytes that were read.
    pub fn skip(&mut self, n: usize) {
        self.from += n;
    }

    /// Why there is no more, for people.
    pub fn why_it_ends(&self) -> String {
        self.ended.clone().unwrap_or_else(|| "it ends in the middle".into())
    }

    /// The next byte that is no white space, not taken.
    pub fn peek(&mut self) -> Option<u8> {
        loop {
            let at = scan::skip_space(self.data(), 0);
            self.from += at;
            if let Some(&byte) = self.data().first() {
                return Some(byte);
            }
            self.grow(BUFFER).ok()?;
        }
    }

    /// Reads until `n` bytes are there.
    ///
    /// # Errors
    /// When the stream ends before; why, for people.
    pub fn fill_to(&mut self, n: usize) -> Result<(), String> {
        while self.to - self.from < n {
            self.grow(BUFFER)?;
        }
        Ok(())
    }

    /// Reads more, moving what is left to the front; the buffer itself grows up to `max`.
    ///
    /// # Errors
    /// When the stream ended, or one value is longer than `max`; why, for people.
    pub fn grow(&mut self, max: usize) -> Result<(), String> {
        if let Some(why) = &self.ended {
            return Err(why.clone());
        }
        self.buf.copy_within(self.from..self.to, 0);
        self.passed += self.from as u64;
        self.to -= self.from;
        self.from = 0;
        if self.to == self.buf.len() {
            if self.buf.len() >= max.max(BUFFER) {
                return Err(format!("one value is longer than {} MiB", max.max(BUFFER) >> 20));
            }
            self.buf.resize((self.buf.len() * 2).min(max.max(BUFFER)), 0);
        }
        loop {
            match self.reader.read(&mut self.buf[self.to..]) {
                Ok(0) => {
                    self.ended = Some(format!("at byte {}", self.passed + self.to as u64));
                    return Err(self.why_it_ends());
                }
                Ok(n) => {
                    self.to += n;
                    return Ok(());
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.ended = Some(format!("at byte {}: {e}", self.passed + self.to as u64));
                    return Err(self.why_it_ends());
                }
            }
        }
    }
}
