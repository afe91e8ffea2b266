//! The files of a window as they appear: found, and read once they have stopped growing. The folder
//! may be on a disk that hangs, so it is scanned on a thread of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::TargetHandle;
use crate::observe::artifact::{FoundFile, files_of, inspect, modified};
use skewtrap_core::capture::facts::ServerKind;
use skewtrap_core::capture::line::Marks;
use skewtrap_core::capture::path_map::PathMap;
use skewtrap_core::capture::plan::StartRequest;
use skewtrap_core::capture::verify::Artifact;
use skewtrap_core::capture::window::Event;
use skewtrap_trace::time::Time;

/// What is known of the files of one window.
#[derive(Debug)]
pub(super) struct Files {
    view: Arc<View>,
    paths: PathMap,
    seen: BTreeMap<PathBuf, Seen>,
    /// The folder of a window of ours was seen: only its start makes it.
    made: bool,
}

/// Where files are searched for, and which.
#[derive(Clone, Debug)]
struct View {
    engine: ServerKind,
    marks: Marks,
    /// In the server's view.
    server_dir: Option<String>,
    /// In ours.
    folder: Option<PathBuf>,
    /// Files that an agent before this one moved into the bundle.
    moved: Vec<PathBuf>,
    /// Files that were there before; only a window without marks needs to know.
    before: Vec<PathBuf>,
}

#[derive(Debug)]
struct Seen {
    last: FoundFile,
    read: Option<Artifact>,
}

impl Files {
    pub(super) fn new(target: &TargetHandle, request: &StartRequest) -> Self {
        let declared = request.marks.dir.clone().or_else(|| request.folder.clone());
        let server_dir = declared.or_else(|| target.default_dir.clone());
        let folder = server_dir.as_deref().map(|dir| target.paths.agent_view(dir));
        let (engine, marks) = (request.engine, request.marks.clone());
        let mut view = View { engine, marks, server_dir, folder, moved: Vec::new(), before: Vec::new() };
        if view.marks == Marks::default() {
            view.before = view.sighted().into_iter().map(|f| f.path).collect();
        }
        Self { view: Arc::new(view), paths: target.paths.clone(), seen: BTreeMap::new(), made: false }
    }

    /// The files of a window that was opened at `sent_at` by an agent before this one, `moved` being
    /// those that it had put into the bundle already.
    pub(super) fn of_before(
        target: &TargetHandle,
        request: &StartRequest,
        sent_at: Time,
        moved: Vec<PathBuf>,
    ) -> Self {
        let mut files = Self::new(target, request);
        let view = Arc::make_mut(&mut files.view);
        view.before.retain(|path| modified(path).is_none_or(|at| at < sent_at));
        view.moved = moved;
        files
    }

    /// A log line of the window names the folder of its files.
    pub(super) fn learn(&mut self, dir: &str) {
        if self.view.marks.dir.is_none() && self.view.marks.show_in_log() {
            let view = Arc::make_mut(&mut self.view);
            view.folder = Some(self.paths.agent_view(dir));
            view.server_dir = Some(dir.to_owned());
        }
    }

    /// Whether files can be expected to be seen: of the folder that will be made, its parent must be there.
    pub(super) fn are_visible(&self) -> bool {
        let Some(folder) = &self.view.folder else { return false };
        let wanted = if self.view.marks.dir.is_some() { folder.parent().unwrap_or(folder) } else { folder };
        wanted.is_dir()
    }

    pub(super) fn server_dir(&self) -> Option<&str> {
        self.view.server_dir.as_deref()
    }

    /// No file was found, and the agent cannot see the folder.
    pub(super) fn is_remote(&self) -> bool {
        self.seen.is_empty() && !self.view.folder.as_deref().is_some_and(Path::is_dir)
    }

    /// Scans the folder and reads the files that have stopped growing; gives the events of the window.
    pub(super) async fn scan(&mut self) -> Vec<Event> {
        let (view, wants_made) = (self.view.clone(), !self.made && self.view.marks.dir.is_some());
        let scan = tokio::task::spawn_blocking(move || {
            let made = wants_made && view.folder.as_deref().is_some_and(Path::is_dir);
            (made, view.sighted())
        });
        // A scan that panics found nothing.
        let (made, sighted) = scan.await.unwrap_or_default();
        let mut events = Vec::new();
        if made {
            self.made = true;
            events.push(Event::File { rank: None, whole: false });
        }
        for sighted in sighted {
            let known = self.seen.get(&sighted.path);
            let grows = known.is_none_or(|seen| seen.last != sighted);
            let is_read = known.is_some_and(|seen| seen.read.is_some());
            if grows {
                self.seen.insert(sighted.path.clone(), Seen { last: sighted, read: None });
            } else if !is_read {
                events.extend(self.read(sighted).await);
            }
        }
        events
    }

    async fn read(&mut self, sighted: FoundFile) -> Option<Event> {
        let (engine, path) = (self.view.engine, sighted.path.clone());
        let artifact = tokio::task::spawn_blocking(move || inspect(&path, engine)).await.ok()?.ok()?;
        let event = Event::File { rank: artifact.rank, whole: artifact.whole };
        self.seen.insert(sighted.path.clone(), Seen { last: sighted, read: Some(artifact) });
        Some(event)
    }

    /// Everything that was read, in the order of the names.
    pub(super) fn into_artifacts(self) -> Vec<Artifact> {
        self.seen.into_values().filter_map(|seen| seen.read).collect()
    }
}

impl View {
    fn sighted(&self) -> Vec<FoundFile> {
        let dir = self.server_dir.as_deref().unwrap_or_default();
        let mut found = match &self.folder {
            Some(folder) => files_of(folder, dir, &self.marks, self.engine),
            None => Vec::new(),
        };
        found.retain(|f| !self.before.contains(&f.path));
        for folder in self.moved.iter().filter_map(|path| path.parent()).take(1) {
            let all = Marks { dir: Some(dir.to_owned()), ..Marks::default() };
            found.extend(files_of(folder, dir, &all, self.engine));
        }
        found
    }
}
