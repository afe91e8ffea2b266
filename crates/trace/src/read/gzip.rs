//! Gzip as profilers write it, with a bound on the ratio of compression.

use std::io::{self, BufReader, Cursor, Read};

/// The bytes of a trace, decompressed if they are gzip (told by the first two bytes, not by a name).
/// Several gzip members after one another are one stream.
///
/// # Errors
/// When the first bytes cannot be read. Reading the result fails once it inflates to far more than
/// any real trace does.
pub fn decompress<'a>(mut reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::with_capacity(2);
    reader.by_ref().take(2).read_to_end(&mut magic)?;
    let is_gzip = magic == [0x1f, 0x8b];
    let whole = Cursor::new(magic).chain(reader);
    Ok(if is_gzip { Box::new(BoundedGzip::new(whole)) } else { Box::new(whole) })
}

/// How many bytes one compressed byte may become at most, once a file is past its first megabytes.
/// Real traces stay below 25; a file beyond this bound was made to exhaust memory or time.
const MAX_RATIO: u64 = 200;
/// The number of decompressed bytes from which on the ratio is checked.
const RATIO_FROM: u64 = 64 << 20;

/// A gzip stream whose ratio of compression is bounded.
struct BoundedGzip<R: Read> {
    gz: flate2::bufread::MultiGzDecoder<BufReader<CountingReader<R>>>,
    out: u64,
}

/// Counts the compressed bytes.
struct CountingReader<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for CountingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.bytes += n as u64;
        Ok(n)
    }
}

impl<R: Read> BoundedGzip<R> {
    fn new(inner: R) -> Self {
        let counting = CountingReader { inner, bytes: 0 };
        Self {
            gz: flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(64 << 10, counting)),
            out: 0,
        }
    }
}

impl<R: Read> Read for BoundedGzip<R> {
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
