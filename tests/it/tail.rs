//! The log reader against everything that rotates logs: each case that was measured, and a model.
//!
//! The reader is driven by hand: a poll stands for a notice of the file system, a tick for a
//! quarter of a second. Nothing waits.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use skewtrap::observe::tail::{Follow, KEPT};
use tempfile::TempDir;

/// A folder with a log, its writer and its reader.
struct Scene {
    folder: TempDir,
    follow: Follow,
    out: Vec<u8>,
    written: usize,
}

impl Scene {
    /// A log that is there, of which the reader has seen the end.
    fn new() -> Self {
        let mut scene = Self::missing("server.log");
        scene.append("server.log").write_all(b"from before the reader came\n").expect("written");
        scene.poll();
        assert!(scene.out.is_empty(), "it begins at the end");
        scene
    }

    /// A log that is not there yet.
    fn missing(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let follow = Follow::new(&folder.path().join(name), false);
        Self { folder, follow, out: Vec::new(), written: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn append(&self, name: &str) -> File {
        OpenOptions::new().create(true).append(true).open(self.path(name)).expect("writable")
    }

    /// Numbered lines at the end of `server.log`, as many writes.
    fn write(&mut self, lines: usize) {
        let mut file = self.append("server.log");
        self.write_to(&mut file, lines);
    }

    fn write_to(&mut self, file: &mut File, lines: usize) {
        for _ in 0..lines {
            file.write_all(line(self.written).as_bytes()).expect("written");
            self.written += 1;
        }
    }

    fn poll(&mut self) {
        while self.follow.poll(1 << 20, false, &mut self.out).expect("readable").more {}
    }

    fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            while self.follow.poll(1 << 20, true, &mut self.out).expect("readable").more {}
        }
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).expect("renamed");
    }

    /// Every line came once, whole and in order.
    #[track_caller]
    fn assert_all(&mut self) {
        self.poll();
        self.ticks(4);
        let wanted: String = (0..self.written).map(line).collect();
        assert_eq!(String::from_utf8_lossy(&self.out), wanted);
    }
}

fn line(number: usize) -> String {
    format!("{number:06} a line of the log, as long as such lines are in the middle of the day\n")
}

#[test]
fn rename_and_create_at_once_with_a_slow_writer() {
    let mut scene = Scene::new();
    scene.write(10);
    scene.poll();
    scene.rename("server.log", "server.log.1");
    for _ in 0..20 {
        scene.write(1);
        scene.poll();
    }
    scene.assert_all();
}

#[test]
fn rename_with_a_gap_before_the_new_file() {
    let mut scene = Scene::new();
    scene.write(10);
    scene.rename("server.log", "server.log.1");
    scene.ticks(3);
    scene.write(20);
    scene.assert_all();
}

#[test]
fn a_late_writer_that_still_holds_the_old_file() {
    let mut scene = Scene::new();
    let mut old = scene.append("server.log");
    scene.write_to(&mut old, 10);
    scene.poll();
    scene.rename("server.log", "server.log.1");
    scene.append("server.log");
    scene.poll();
    scene.write_to(&mut old, 5);
    scene.poll();
    scene.write(3);
    scene.assert_all();
}

#[test]
fn rename_with_a_burst_in_the_new_file() {
    let mut scene = Scene::new();
    scene.write(30);
    scene.rename("server.log", "server.log.1");
    scene.write(200);
    scene.assert_all();
}

#[test]
fn rename_of_a_big_file_and_a_new_one_that_stays_quiet() {
    let mut scene = Scene::new();
    scene.write(20_000);
    scene.poll();
    scene.rename("server.log", "server.log.1");
    scene.write(12);
    scene.assert_all();
}

#[test]
fn many_renames_under_a_busy_writer() {
    let mut scene = Scene::new();
    for turn in 0..100 {
        scene.write(137);
        scene.poll();
        scene.write(11);
        scene.rename("server.log", &format!("server.log.{turn}"));
    }
    scene.write(1);
    scene.assert_all();
}

#[test]
fn files_that_are_rotated_away_before_there_is_room_for_them_are_counted() {
    let mut scene = Scene::new();
    scene.write(200_000);
    for turn in 0..40 {
        scene.rename("server.log", &format!("server.log.{turn}"));
        scene.append("server.log").write_all(b"of a file in a hurry\n").expect("written");
        // So little at a time that the first file is not left.
        scene.follow.poll(1, false, &mut scene.out).expect("readable");
    }
    assert_eq!(scene.follow.lost_files(), 8, "32 are held; the last one still waits for its turn");
    scene.poll();
    scene.ticks(4);
    assert_eq!(scene.follow.lost_files(), 8);
    let lines = scene.out.split(|byte| *byte == b'\n');
    assert_eq!(
        lines.filter(|line| *line == b"of a file in a hurry").count(),
        32,
        "31 and the one that waited"
    );
}

#[test]
fn copytruncate_with_a_slow_writer() {
    let mut scene = Scene::new();
    let mut file = scene.append("server.log");
    for _ in 0..5 {
        scene.write_to(&mut file, 10);
        scene.poll();
        file.set_len(0).expect("truncated");
    }
    scene.write_to(&mut file, 3);
    scene.assert_all();
}

#[test]
fn copytruncate_whose_new_content_is_longer_than_the_old_at_once() {
    let mut scene = Scene::new();
    let mut file = scene.append("server.log");
    scene.write_to(&mut file, 10);
    scene.poll();
    file.set_len(0).expect("truncated");
    scene.write_to(&mut file, 50);
    scene.assert_all();
    assert_eq!(scene.follow.truncations(), 1);
}

#[test]
fn a_file_that_appears_later_and_a_folder_that_appears_later() {
    let mut scene = Scene::missing("server.log");
    let mut polled = scene.follow.poll(1 << 20, false, &mut scene.out).expect("no error");
    assert!(polled.is_missing);
    scene.write(5);
    scene.assert_all();
    let mut scene = Scene::missing("logs/server.log");
    polled = scene.follow.poll(1 << 20, false, &mut scene.out).expect("no error");
    assert!(polled.is_missing);
    assert_eq!(scene.follow.folders(), [scene.folder.path()]);
    fs::create_dir(scene.path("logs")).expect("made");
    assert_eq!(scene.follow.folders(), [scene.path("logs")]);
    let mut file = scene.append("logs/server.log");
    scene.write_to(&mut file, 5);
    scene.assert_all();
}

#[test]
fn delete_and_recreate() {
    let mut scene = Scene::new();
    for _ in 0..3 {
        scene.write(10);
        scene.poll();
        fs::remove_file(scene.path("server.log")).expect("deleted");
        scene.poll();
        scene.ticks(2);
    }
    scene.write(10);
    scene.assert_all();
}

#[test]
fn reading_a_log_leaves_its_time_of_access() {
    let mut scene = Scene::new();
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_hours(24);
    scene.append("server.log").set_times(fs::FileTimes::new().set_accessed(long_ago)).expect("set");
    scene.write(10);
    scene.assert_all();
    let accessed = fs::metadata(scene.path("server.log")).and_then(|m| m.accessed()).expect("there");
    assert_eq!(accessed, long_ago, "the kernel would write it to the disk after each line");
}

#[test]
fn a_link_whose_target_is_rotated_and_a_link_that_is_turned() {
    let mut scene = Scene::missing("server.log");
    scene.append("0.log");
    symlink(scene.path("0.log"), scene.path("server.log")).expect("linked");
    scene.poll();
    assert_eq!(scene.follow.folders().len(), 1);
    scene.write(10);
    scene.poll();
    scene.rename("0.log", "0.log.20261124");
    scene.write(10);
    scene.poll();
    let mut next = scene.append("1.log");
    scene.write(2);
    fs::remove_file(scene.path("server.log")).expect("unlinked");
    symlink(scene.path("1.log"), scene.path("server.log")).expect("linked");
    scene.write_to(&mut next, 10);
    scene.assert_all();
}

#[test]
fn a_link_into_another_folder_has_both_folders_watched() {
    let scene = Scene::missing("server.log");
    fs::create_dir(scene.path("pods")).expect("made");
    scene.append("pods/0.log");
    symlink(scene.path("pods/0.log"), scene.path("server.log")).expect("linked");
    let pods = scene.path("pods").canonicalize().expect("it is there");
    assert_eq!(scene.follow.folders(), [scene.folder.path().to_owned(), pods]);
}

#[test]
fn bytes_that_are_not_utf8_and_carriage_returns_are_delivered() {
    let mut scene = Scene::new();
    let mut file = scene.append("server.log");
    file.write_all(b"one \xff line\nwindows\r\nnext\n").expect("written");
    scene.poll();
    assert_eq!(scene.out, b"one \xff line\nwindows\r\nnext\n");
}

#[test]
fn pieces_of_lines_become_lines() {
    let mut scene = Scene::new();
    let mut file = scene.append("server.log");
    for piece in ["li", "ne 0\nline ", "1\n"] {
        file.write_all(piece.as_bytes()).expect("written");
        scene.poll();
    }
    assert_eq!(scene.out, b"line 0\nline 1\n");
}

#[test]
fn a_line_without_end_is_cut_and_counted() {
    let mut scene = Scene::new();
    let mut file = scene.append("server.log");
    for _ in 0..64 {
        file.write_all(&vec![b'x'; 1 << 20]).expect("written");
        scene.poll();
    }
    file.write_all(b"\nafter\n").expect("written");
    scene.poll();
    assert_eq!(scene.out.len(), KEPT + 1 + b"after\n".len());
    assert_eq!(scene.follow.long_lines(), 1);
}

#[test]
fn reading_from_the_start_tells_the_past_from_the_present() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("server.log");
    fs::write(&path, "old 1\nold 2\nne").expect("written");
    let mut follow = Follow::new(&path, true);
    let mut out = Vec::new();
    let past = follow.poll(1 << 20, false, &mut out).expect("readable");
    assert!(past.is_backlog && past.more);
    assert_eq!(out, b"old 1\nold 2\n");
    OpenOptions::new().append(true).open(&path).and_then(|mut f| f.write_all(b"w\n")).expect("written");
    let present = follow.poll(1 << 20, false, &mut out).expect("readable");
    assert!(!present.is_backlog && !present.more);
    assert_eq!(out, b"old 1\nold 2\nnew\n");
}

#[test]
fn a_busy_file_gives_up_its_turn() {
    let mut scene = Scene::new();
    scene.write(40_000);
    let polled = scene.follow.poll(1 << 20, false, &mut scene.out).expect("readable");
    assert!(polled.more && scene.out.len() < (1 << 20) + (256 << 10), "{} bytes", scene.out.len());
    scene.assert_all();
}

#[test]
fn two_hundred_files_with_a_hundred_lines() {
    let mut scenes: Vec<_> = (0..200).map(|_| Scene::new()).collect();
    for scene in &mut scenes {
        scene.write(100);
    }
    scenes.iter_mut().for_each(Scene::assert_all);
}

#[test]
fn what_a_late_writer_adds_to_an_old_file_comes_in_pieces_as_all_else_does() {
    let mut scene = Scene::new();
    let mut old = scene.append("server.log");
    scene.write(1);
    scene.poll();
    scene.rename("server.log", "server.log.1");
    scene.write(1);
    scene.poll();
    scene.write_to(&mut old, 100_000);
    let mut largest = 0;
    loop {
        let before = scene.out.len();
        let polled = scene.follow.poll(1 << 20, false, &mut scene.out).expect("readable");
        largest = largest.max(scene.out.len() - before);
        if !polled.more {
            break;
        }
    }
    assert!(largest < (1 << 20) + (256 << 10), "{largest} bytes at once");
    scene.assert_all();
}

#[test]
fn what_is_no_file_is_refused_by_its_name_and_nobody_waits_for_its_writer() {
    let scene = Scene::missing("server.log");
    rustix::fs::mkfifoat(rustix::fs::CWD, scene.path("fifo"), rustix::fs::Mode::RUSR).expect("made");
    let _socket = std::os::unix::net::UnixListener::bind(scene.path("socket")).expect("bound");
    fs::create_dir(scene.path("logs")).expect("made");
    for (name, what) in [("fifo", "a FIFO"), ("socket", "a socket"), ("logs", "a folder")] {
        let mut follow = Follow::new(&scene.path(name), false);
        let refused = follow.poll(1 << 20, false, &mut Vec::new()).expect_err(name);
        assert_eq!((refused.kind(), refused.to_string()), (std::io::ErrorKind::InvalidInput, what.into()));
    }
}

#[test]
fn bytes_that_were_gone_before_they_could_be_read_are_counted() {
    let mut scene = Scene::new();
    scene.write(40_000);
    let first = scene.follow.poll(1 << 20, false, &mut scene.out).expect("readable");
    let (read, length) =
        (scene.out.len() as u64, fs::metadata(scene.path("server.log")).expect("there").len());
    assert!(first.more && read < length);
    scene.append("server.log").set_len(0).expect("truncated");
    scene.append("server.log").write_all(b"after\n").expect("written");
    scene.poll();
    assert!(scene.out.ends_with(b"after\n"));
    let before = b"from before the reader came\n".len() as u64;
    assert!(scene.follow.unseen().abs_diff(length - before - read) < 1 << 17, "{}", scene.follow.unseen());
}

/// What can happen to a log. Before anything that replaces or empties a file the reader gets one
/// turn, as a notice would give it; what nobody was told of, nobody can read.
#[derive(Clone, Debug)]
enum Happens {
    Write(usize),
    WriteInPieces,
    WriteLate(usize),
    Rename,
    RenameTarget,
    Truncate,
    TruncateAndRewrite,
    Turn,
    Delete,
    Poll,
    Tick,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        6 => (1_usize..30).prop_map(Happens::Write),
        2 => Just(Happens::WriteInPieces),
        1 => (1_usize..4).prop_map(Happens::WriteLate),
        2 => Just(Happens::Rename),
        2 => Just(Happens::RenameTarget),
        2 => Just(Happens::Truncate),
        2 => Just(Happens::TruncateAndRewrite),
        2 => Just(Happens::Turn),
        1 => Just(Happens::Delete),
        3 => Just(Happens::Poll),
        1 => Just(Happens::Tick),
    ]
}

/// The world around the reader: a name, the file behind it, and one that was rotated away.
struct World {
    scene: Scene,
    turns: usize,
    old: Option<File>,
    has_late: bool,
}

impl World {
    fn step(&mut self, what: &Happens) {
        self.turns += 1;
        let target = fs::canonicalize(self.scene.path("server.log")).ok();
        match what {
            Happens::Write(lines) => self.scene.write(*lines),
            Happens::WriteInPieces => self.write_in_pieces(),
            Happens::WriteLate(lines) => self.write_late(*lines),
            Happens::Rename if target.is_some() => {
                self.replace();
                self.scene.rename("server.log", &format!("name.{}", self.turns));
            }
            Happens::RenameTarget => {
                let Some(target) = target else { return };
                self.replace();
                fs::rename(&target, self.scene.path(&format!("target.{}", self.turns))).expect("renamed");
            }
            Happens::Truncate | Happens::TruncateAndRewrite => {
                let Some(target) = target else { return };
                self.scene.poll();
                OpenOptions::new().write(true).open(target).and_then(|f| f.set_len(0)).expect("truncated");
                if matches!(what, Happens::TruncateAndRewrite) {
                    self.scene.write(40);
                }
            }
            Happens::Turn => self.turn(),
            Happens::Delete if target.is_some() => {
                self.replace();
                fs::remove_file(self.scene.path("server.log")).expect("deleted");
            }
            Happens::Tick => self.scene.ticks(1),
            Happens::Poll | Happens::Rename | Happens::Delete => self.scene.poll(),
        }
    }

    /// The reader's turn before the file is replaced; the writer keeps its handle.
    fn replace(&mut self) {
        self.scene.poll();
        self.old = File::options().append(true).open(self.scene.path("server.log")).ok();
    }

    fn write_in_pieces(&mut self) {
        let text = line(self.scene.written);
        self.scene.written += 1;
        for piece in text.as_bytes().chunks(17) {
            self.scene.append("server.log").write_all(piece).expect("written");
            self.scene.poll();
        }
    }

    fn write_late(&mut self, lines: usize) {
        let Some(mut old) = self.old.take() else { return };
        self.scene.poll();
        self.has_late = true;
        self.scene.write_to(&mut old, lines);
        self.scene.poll();
    }

    /// The name becomes a link to a file that was never there.
    fn turn(&mut self) {
        self.replace();
        let next = format!("{}.log", self.turns);
        self.scene.append(&next);
        let _ = fs::remove_file(self.scene.path("server.log"));
        symlink(Path::new(&next), self.scene.path("server.log")).expect("linked");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 2_000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_every_line_comes_once_and_whole(messages in proptest::collection::vec(happens(), 1..40)) {
        let mut world = World { scene: Scene::new(), turns: 0, old: None, has_late: false };
        for what in &messages {
            world.step(what);
        }
        world.scene.poll();
        world.scene.ticks(12);
        let out = String::from_utf8(std::mem::take(&mut world.scene.out)).expect("what was written is text");
        let mut came: Vec<&str> = out.lines().collect();
        let wanted: String = (0..world.scene.written).map(line).collect();
        let wanted: Vec<&str> = wanted.lines().collect();
        if world.has_late {
            came.sort_unstable();
        }
        prop_assert_eq!(came, wanted);
    }
}
