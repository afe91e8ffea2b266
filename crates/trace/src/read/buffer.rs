//! A sliding buffer over a stream: it moves on with what was consumed, and grows up to a bound where
//! one value is longer than it. The reason for which a stream ended is kept for error messages.

use std::io::Read;

use super::json::skip_space;

/// The size of the buffer, in bytes.
const BUFFER: usize = 256 << 10;

/// A stream, and the part of it that is in memory.
pub struct StreamBuffer<R> {
    reader: R,
    buf: Vec<u8>,
    from: usize,
    to: usize,
    /// Bytes of the stream before `buf`.
    passed: u64,
    /// Why nothing more can be read, for people.
    ended: Option<String>,
}

impl<R: Read> StreamBuffer<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, buf: vec![0; BUFFER], from: 0, to: 0, passed: 0, ended: None }
    }

    /// What was read and not yet consumed.
    #[inline]
    pub fn data(&self) -> &[u8] {
        &self.buf[self.from..self.to]
    }

    /// How many bytes were consumed.
    pub fn offset(&self) -> u64 {
        self.passed + self.from as u64
    }

    /// Consumes `n` bytes of [`Self::data`].
    #[inline]
    pub fn consume(&mut self, n: usize) {
        self.from += n;
    }

    /// Why the stream ended, for people.
    pub fn end_reason(&self) -> String {
        self.ended.clone().unwrap_or_else(|| "it ends in the middle".into())
    }

    /// The next byte that is no white space; it is not consumed, the white space is.
    #[inline]
    pub fn peek(&mut self) -> Option<u8> {
        loop {
            let at = skip_space(self.data(), 0);
            self.from += at;
            if let Some(&byte) = self.data().first() {
                return Some(byte);
            }
            self.grow(BUFFER).ok()?;
        }
    }

    /// Reads until [`Self::data`] holds `n` bytes.
    ///
    /// # Errors
    /// When the stream ends before that; the reason, for people.
    pub fn fill_to(&mut self, n: usize) -> Result<(), String> {
        while self.to - self.from < n {
            self.grow(BUFFER)?;
        }
        Ok(())
    }

    /// Reads more, moving what is left to the front; the buffer itself grows up to `max`.
    ///
    /// # Errors
    /// When the stream ended, or one value is longer than `max`; the reason, for people.
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
                    return Err(self.end_reason());
                }
                Ok(n) => {
                    self.to += n;
                    return Ok(());
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.ended = Some(format!("at byte {}: {e}", self.passed + self.to as u64));
                    return Err(self.end_reason());
                }
            }
        }
    }
}
