//! Lines of the log on their way to standard error, written by a thread of their own: a pipe that nobody reads must not
//! keep a window from being stopped.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::panic::PanicHookInfo;
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

/// The thread that writes.
const THREAD: &str = "log";

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
        thread::Builder::new().name(THREAD.into()).spawn(move || write_all(out, &entries, &counted, told))?;
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
        if self.push(Entry::Flush(done), until).is_ok() {
            // Too late or never: whoever reads nothing gets nothing.
            let _ = waits.recv_timeout(until.saturating_duration_since(Instant::now()));
        }
    }

    /// Writes what a program says before it ends, behind all lines before it, and waits for `limit` at most. Whether
    /// there is a thread that writes.
    fn last_words(&self, said: Vec<u8>, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        match self.push(Entry::Line(said), until) {
            Ok(()) => self.flush(until.saturating_duration_since(Instant::now())),
            Err(TrySendError::Full(_)) => drop(self.dropped.fetch_add(1, Ordering::Relaxed)),
            Err(TrySendError::Disconnected(_)) => return false,
        }
        true
    }

    /// Adds an entry, for which it waits for room.
    fn push(&self, mut entry: Entry, until: Instant) -> Result<(), TrySendError<Entry>> {
        loop {
            match self.tx.try_send(entry) {
                Err(TrySendError::Full(again)) if Instant::now() < until => entry = again,
                sent => return sent,
            }
            thread::sleep(ASK_AGAIN);
        }
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
    std::panic::set_hook(Box::new(move |panic| match TO_STDERR.get() {
        // The thread that writes the queue can hand itself nothing.
        Some(queue) if thread::current().name() != Some(THREAD) => {
            // Behind the lines before it, and held up by a full pipe no longer than they are.
            if !queue.last_words(message_of(panic).into_bytes(), LAST_LINES) {
                before(panic);
            }
        }
        _ => before(panic),
    }));
    Ok(queue)
}

/// What a panic says, as the standard library does.
fn message_of(panic: &PanicHookInfo<'_>) -> String {
    let current = thread::current();
    let mut message = format!("\nthread '{}' {panic}\n", current.name().unwrap_or("<unnamed>"));
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        message += &format!("stack backtrace:\n{trace}");
    }
    message
}

/// Prints a line on standard error: behind those of the log where this process has one, since a pipe that nobody reads
/// must hold up nobody.
pub fn print(line: &str) {
    match TO_STDERR.get() {
        Some(queue) => drop(queue.clone().write_all(format!("{line}\n").as_bytes())),
        None => anstream::eprintln!("{line}"),
    }
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

    /// What the test below starts.
    #[test]
    #[ignore = "it panics on purpose"]
    fn a_panic_of_a_program_with_a_queue() {
        to_stderr().expect("a thread");
        let panicked = thread::spawn(|| panic!("on purpose")).join();
        std::process::exit(if panicked.is_err() { 7 } else { 8 });
    }

    #[test]
    fn last_words_find_their_place_behind_a_full_queue_where_it_is_read() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let mut queue = LogQueue::start(writer, |_| {}).expect("a thread");
        while queue.dropped() == 0 {
            queue.write_all(&[b'x'; 512]).expect("it is taken, or counted");
        }
        let read = thread::spawn(move || {
            let mut text = String::new();
            io::BufReader::new(reader).read_to_string(&mut text).expect("read");
            text
        });
        assert!(queue.last_words(b"last words".to_vec(), Duration::from_secs(30)));
        drop(queue);
        assert!(read.join().expect("it reads to the end").ends_with("last words"));
        let (tx, gone) = sync_channel(1);
        drop(gone);
        let orphaned = LogQueue { tx, dropped: Arc::default() };
        assert!(!orphaned.last_words(b"last words".to_vec(), Duration::from_secs(30)));
    }

    #[test]
    fn a_panic_is_told_and_held_up_by_no_pipe_that_nobody_reads() {
        let (mut reader, mut writer) = io::pipe().expect("a pipe");
        let start = |to: io::PipeWriter| {
            let mut command = std::process::Command::new(std::env::current_exe().expect("this test"));
            let name = "act::log_queue::tests::a_panic_of_a_program_with_a_queue";
            command.args([name, "--exact", "--ignored", "--nocapture"]).env("RUST_BACKTRACE", "0");
            command.stdout(std::process::Stdio::null()).stderr(to).spawn().expect("it starts")
        };
        let told = start(writer.try_clone().expect("another")).wait().expect("it ends");
        let mut text = [0; 4096];
        let read = reader.read(&mut text).expect("read");
        let text = String::from_utf8_lossy(&text[..read]);
        assert!(told.code() == Some(7) && text.contains("panicked at src/act/log_queue.rs"), "{text}");
        assert!(text.contains("on purpose"), "{text}");
        // 64 KiB fill it.
        let flags = rustix::fs::fcntl_getfl(&writer).expect("its flags");
        rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).expect("set");
        while writer.write(&[b'x'; 512]).is_ok() {}
        rustix::fs::fcntl_setfl(&writer, flags).expect("set");
        let mut child = start(writer.try_clone().expect("another"));
        let until = Instant::now() + Duration::from_secs(30);
        let ended = loop {
            if let Some(ended) = child.try_wait().expect("asked") {
                break ended;
            }
            if Instant::now() > until {
                child.kill().expect("killed");
                panic!("it waits for somebody to read why it panicked");
            }
            thread::sleep(ASK_AGAIN);
        };
        assert_eq!(ended.code(), Some(7));
    }
}
