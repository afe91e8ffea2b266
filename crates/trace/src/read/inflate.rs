//! Gzip as profilers write it, with a bound on what it may become.

use std::io::{self, BufReader, Cursor, Read};

/// The bytes of a trace, inflated if they are gzip. Several members after one another are one stream.
///
/// # Errors
/// When the first bytes cannot be read. Reading the result fails where it inflates to more than any
/// real trace does.
pub fn inflated<'a>(mut reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::with_capacity(2);
    reader.by_ref().take(2).read_to_end(&mut magic)?;
    let is_gzip = magic == [0x1f, 0x8b];
    let whole = Cursor::new(magic).chain(reader);
    Ok(if is_gzip { Box::new(Inflated::new(whole)) } else { Box::new(whole) })
}

/// The most bytes that one compressed byte may become, once a file is past its first megabytes.
/// Real traces stay below 25; what exceeds this was made to fill memory or time.
const MAX_RATIO: u64 = 200;
/// From how many inflated bytes on the ratio counts.
const RATIO_FROM: u64 = 64 << 20;

/// Gzip, several members after one another included, with a bound on its ratio.
struct Inflated<R: Read> {
    gz: flate2::bufread::MultiGzDecoder<BufReader<Tally<R>>>,
    out: u64,
}

/// Counts what is read through it.
struct Tally<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for Tally<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.bytes += n as u64;
        Ok(n)
    }
}

impl<R: Read> Inflated<R> {
    fn new(inner: R) -> Self {
        let tally = Tally { inner, bytes: 0 };
        Self { gz: flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(64 << 10, tally)), out: 0 }
    }
}

impl<R: Read> Read for Inflated<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.gz.read(buf)?;
        self.out += n as u64;
        let bytes = self.gz.get_ref().get_ref().bytes;
        if self.out > RATIO_FROM && self.out / bytes.max(1) > MAX_RATIO {
            let why = format!("it inflates to more than {MAX_RATIO} times its size, which no trace does");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(n)
    }
}
