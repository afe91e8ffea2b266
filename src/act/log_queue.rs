//! Lines of the log on their way to standard error, written by a thread of their own: a pipe that nobody reads must not
//! keep a window from being stopped.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// Lines that may wait, seconds of the busiest log.
const WAITING: usize = 4096;
/// How long the last lines are waited for when the program ends or panics.
const LAST_LINES: Duration = Duration::from_millis(500);
const ASK_AGAIN: Duration = Duration::from_millis(5);

static TO_STDERR: OnceLock<LogQueue> = OnceLock::new();

enum Entry {
    Line(Vec<u8>),
    /// Answered when all lines before it are written.
    Flush(SyncSender<()>),
}

/// A bounded queue of lines in front of something that may block. Each write is a line.
#[derive(Clone, Debug)]
pub struct LogQueue {
    tx: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

impl LogQueue {
    /// A queue in front of `out`; `told` is called on its thread with how many lines were dropped, once it
    /// writes again.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(out: impl Write + Send + 'static, told: fn(u64)) -> io::Result<Self> {
        let (tx, entries) = sync_channel(WAITING);
        let dropped = Arc::new(AtomicU64::new(0));
        let counted = dropped.clone();
        thread::Builder::new().name("log".into()).spawn(move || write_all(out, &entries, &counted, told))?;
        Ok(Self { tx, dropped })
    }

    /// How many lines were dropped so far, because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until everything before is written, or for `limit`.
    pub fn flush(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let (done, waits) = sync_channel(1);
        let mut entry = Entry::Flush(done);
        while let Err(TrySendError::Full(again)) = self.tx.try_send(entry) {
            if Instant::now() >= until {
                return;
            }
            entry = again;
            thread::sleep(ASK_AGAIN);
        }
        // Too late or never: whoever reads nothing gets nothing.
        let _ = waits.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

impl Write for LogQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(TrySendError::Full(_)) = self.tx.try_send(Entry::Line(line.to_vec())) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(mut out: impl Write, entries: &Receiver<Entry>, dropped: &AtomicU64, told: fn(u64)) {
    let mut known = 0;
    while let Ok(entry) = entries.recv() {
        match entry {
            // Where standard error is closed nobody can be told.
            Entry::Line(line) => drop(out.write_all(&line)),
            Entry::Flush(done) => {
                let _ = out.flush();
                // Nobody may be waiting any more.
                let _ = done.try_send(());
            }
        }
        let now = dropped.load(Ordering::Relaxed);
        if now > known {
            told(now - known);
            known = now;
        }
    }
}

/// The queue in front of this process's standard error, which is written before the process ends or says why it panics.
///
/// # Errors
/// No thread can be started.
pub fn to_stderr() -> io::Result<LogQueue> {
    if let Some(queue) = TO_STDERR.get() {
        return Ok(queue.clone());
    }
    let started = LogQueue::start(io::stderr(), |lines| {
        tracing::warn!("{lines} lines of the log were dropped: standard error was not read fast enough");
    })?;
    let queue = TO_STDERR.get_or_init(|| started).clone();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        flush();
        before(panic);
    }));
    Ok(queue)
}

/// Waits a moment for the last lines when it is dropped.
#[derive(Debug)]
pub struct FlushAtEnd;

impl Drop for FlushAtEnd {
    fn drop(&mut self) {
        flush();
    }
}

fn flush() {
    if let Some(queue) = TO_STDERR.get() {
        queue.flush(LAST_LINES);
    }
}

/// How many lines of the log were dropped so far.
pub fn dropped() -> u64 {
    TO_STDERR.get().map_or(0, LogQueue::dropped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_pipe_that_nobody_reads_holds_up_nobody_and_what_is_dropped_is_counted_and_told() {
        static TOLD: AtomicU64 = AtomicU64::new(0);
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let told = |lines| {
            TOLD.fetch_add(lines, Ordering::Relaxed);
        };
        let mut queue = LogQueue::start(writer, told).expect("a thread");
        // A pipe holds 64 KiB, the queue behind it its lines.
        let line = [b'x'; 1024];
        for _ in 0..2 * WAITING {
            queue.write_all(&line).expect("it never fails");
        }
        queue.flush(Duration::from_millis(1));
        let dropped = queue.dropped();
        assert!(dropped >= (WAITING - 128) as u64, "{dropped}");
        let written = thread::spawn(move || {
            let mut text = Vec::new();
            reader.read_to_end(&mut text).map(|_| text.len() / line.len())
        });
        queue.flush(Duration::from_secs(60));
        assert_eq!(TOLD.load(Ordering::Relaxed), dropped);
        drop(queue);
        let written = written.join().expect("no panic").expect("read");
        assert_eq!(written as u64 + dropped, 2 * WAITING as u64);
    }
}
