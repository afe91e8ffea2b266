//! Facts about captured files (which there are, their ranks, whether they are complete) and about the
//! space on the disk that they are written to.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};

use skewtrap_core::capture::facts::{Room, ServerKind};
use skewtrap_core::capture::line::Marks;
use skewtrap_core::capture::verify::{Artifact, rank_of_name};
use skewtrap_trace::hex;
use skewtrap_trace::time::Time;

/// A file of a window, whose content was not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundFile {
    /// As the agent sees it.
    pub path: PathBuf,
    /// Bytes so far.
    pub size: u64,
    /// Inode number.
    pub inode: u64,
}

/// The files in `folder` (the agent's view of `server_dir`) that bear the marks of a window. Marks
/// without any name, as of an old vLLM, match every trace; see [`FoundFile`] for how to distinguish
/// new files from older ones. Symlinks are left out. A folder that is not there has none.
pub fn files_of(folder: &Path, server_dir: &str, marks: &Marks, engine: ServerKind) -> Vec<FoundFile> {
    let unmarked = *marks == Marks::default();
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<FoundFile> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let wanted = is_trace(engine, &name) && (unmarked || marks.names(server_dir, &name));
            let meta = entry.metadata().ok().filter(|m| wanted && m.is_file())?;
            Some(FoundFile { path: entry.path(), size: meta.len(), inode: meta.ino() })
        })
        .collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn is_trace(engine: ServerKind, name: &str) -> bool {
    match engine {
        ServerKind::TensorrtLlm => name.starts_with("trtllm-trace-") && name.ends_with(".json"),
        ServerKind::Sglang | ServerKind::DynamoSglang => {
            [".trace.json.gz", ".pickle", ".trace.json"].iter().any(|e| name.ends_with(e))
        }
        ServerKind::Vllm | ServerKind::DynamoVllm => {
            name.contains(".pt.trace.json") || name.contains(".profiler_out")
        }
    }
}

/// Reads a file to its end, for its digest and whether its gzip stream is complete.
///
/// # Errors
/// It cannot be read at all.
pub fn inspect(path: &Path, engine: ServerKind) -> io::Result<Artifact> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut digest =
        Digested { inner: BufReader::with_capacity(1 << 16, file), digest: Sha256::new(), read: 0 };
    let whole = match engine {
        _ if name.ends_with(".gz") => unpacks(&mut digest),
        ServerKind::TensorrtLlm => ends_with_brace(&mut digest)?,
        _ => true,
    };
    // What the decoder left unread belongs to the digest too.
    io::copy(&mut digest, &mut io::sink())?;
    Ok(Artifact {
        path: path.display().to_string(),
        rank: rank_of_name(engine, &name),
        size: digest.read,
        sha256: hex(&digest.digest.finalize()),
        inode: meta.ino(),
        whole: whole && digest.read > 0,
    })
}

/// Whether the gzip stream is complete and its checksum is right.
fn unpacks(reader: &mut impl Read) -> bool {
    let mut buffer = vec![0; 1 << 16];
    let mut decoder = MultiGzDecoder::new(reader);
    loop {
        match decoder.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

/// Whether JSON that is written from front to back has its last brace.
fn ends_with_brace(reader: &mut impl Read) -> io::Result<bool> {
    let mut buffer = vec![0; 1 << 16];
    let mut last = None;
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            return Ok(last == Some(b'}'));
        }
        last = buffer[..n].iter().rfind(|b| !b.is_ascii_whitespace()).copied().or(last);
    }
}

/// Digests what is read through it.
struct Digested<R> {
    inner: R,
    digest: Sha256,
    read: u64,
}

impl<R: Read> Read for Digested<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.digest.update(&buffer[..n]);
        self.read += n as u64;
        Ok(n)
    }
}

/// When a file was last written to.
pub fn modified(path: &Path) -> Option<Time> {
    let meta = fs::metadata(path).ok()?;
    Some(Time::from_nanos(meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec())))
}

/// When a file was made, where its file system tells that, and when it was last written.
pub fn written(path: &Path) -> Option<(Option<Time>, Time)> {
    let made = || fs::metadata(path).ok()?.created().ok()?.duration_since(std::time::UNIX_EPOCH).ok();
    Some((made().map(|born| Time::from_epoch_s(born.as_secs_f64())), modified(path)?))
}

/// The space in a folder, as the agent sees it; `None` when the agent sees neither it nor its parent.
pub fn room(path: &Path) -> Option<Room> {
    let Ok(meta) = fs::metadata(path) else {
        // If the parent exists, the folder is missing; if not, the folder is probably on another machine.
        let parent = path.parent().filter(|p| p.parent().is_some())?;
        return parent.is_dir().then_some(Room { exists: false, writable: false, free: 0 });
    };
    let stat = rustix::fs::statvfs(path).ok()?;
    let read_only = stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
    Some(Room {
        exists: meta.is_dir(),
        writable: !read_only,
        free: stat.f_bavail.saturating_mul(stat.f_frsize),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use skewtrap_trace::rank::{Axis, Rank};

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_whole_stream_is_told_from_one_that_is_cut_or_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("17.5-TP-0-DP-2.trace.json.gz");
        let whole = gzip(&b"{\"traceEvents\": []}".repeat(500));
        for (bytes, wanted) in
            [(whole.clone(), true), (whole[..whole.len() - 1].to_vec(), false), (Vec::new(), false)]
        {
            fs::write(&path, &bytes).unwrap();
            let found = inspect(&path, ServerKind::Sglang).unwrap();
            assert_eq!((found.whole, found.size), (wanted, bytes.len() as u64));
            assert_eq!(found.sha256, hex(&Sha256::digest(&bytes)));
            assert_eq!(found.rank, Some(Rank::dp(2).with(Axis::Tp, 0)));
        }
    }

    #[test]
    fn only_files_that_bear_the_marks_are_of_the_window() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["st-1-17.5-TP-0.trace.json.gz", "17.9-TP-0.trace.json.gz", "st-1-notes.txt"] {
            fs::write(dir.path().join(name), b"x").unwrap();
        }
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("st-1-link.trace.json.gz")).unwrap();
        let marks = Marks { prefix: Some("st-1".into()), ..Marks::default() };
        let found = files_of(dir.path(), "/tmp", &marks, ServerKind::Sglang);
        let names: Vec<_> = found.iter().map(|f| f.path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["st-1-17.5-TP-0.trace.json.gz"]);
        assert_eq!(files_of(&dir.path().join("nowhere"), "/tmp", &marks, ServerKind::Sglang), []);
    }

    #[test]
    fn a_folder_that_is_missing_is_told_from_one_that_is_out_of_sight() {
        let dir = tempfile::tempdir().unwrap();
        assert!(room(dir.path()).unwrap().exists);
        assert!(!room(&dir.path().join("missing")).unwrap().exists);
        assert_eq!(room(Path::new("/on/another/machine")), None);
    }
}
