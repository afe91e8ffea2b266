//! The files of a window as they appear: found, and read once they have stopped growing. The folder
//! may be on a disk that hangs, so it is scanned on a thread of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::TargetHandle;
use crate::observe::artifact::{FoundFile, files_of, inspect, modified};
use skewtrap_core::capture::facts::ServerKind;
use skewtrap_core::capture::line::Marks;
use skewtrap_core::capture::path_map::PathMap;
use skewtrap_core::capture::plan::StartRequest;
use skewtrap_core::capture::verify::{Artifact, rank_among};
use skewtrap_core::capture::window::Event;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// How long looking at the folder may take before the start, and after the end.
const FOLDER_LIMIT: Duration = Duration::from_millis(500);

/// What is known of the files of one window; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Files {
    known: Arc<Mutex<SearchState>>,
    paths: Arc<PathMap>,
    /// Whether the folder of the files could be seen at first.
    visible: bool,
}

#[derive(Debug)]
struct SearchState {
    view: Arc<View>,
    seen: BTreeMap<PathBuf, FileProgress>,
    /// The folder of a window of ours was seen: only its start makes it.
    made: bool,
}

/// Where files are searched for, and which.
#[derive(Clone, Debug)]
struct View {
    engine: ServerKind,
    marks: Marks,
    /// The ranks of the window.
    ranks: Vec<Rank>,
    /// In the server's view.
    server_dir: Option<String>,
    /// In ours.
    folder: Option<PathBuf>,
    /// Files that an agent before this one moved into the bundle.
    moved: Vec<PathBuf>,
    /// Files that were there before; only a window without marks needs to know.
    before: Vec<PathBuf>,
}

#[derive(Clone, Debug)]
struct FileProgress {
    last: FoundFile,
    read: Option<Artifact>,
}

impl Files {
    /// A folder that hangs is one that the agent does not see: the window must not wait for it.
    pub(super) async fn new(target: &TargetHandle, request: &StartRequest) -> Self {
        let declared = request.marks.dir.clone().or_else(|| request.folder.clone());
        let server_dir = declared.or_else(|| target.default_dir.clone());
        let folder = server_dir.as_deref().map(|dir| target.paths.agent_view(dir));
        let (engine, marks) = (request.engine, request.marks.clone());
        let ranks = request.ranks.busy.iter().chain(&request.ranks.idle).copied().collect();
        let mut view =
            View { engine, marks, ranks, server_dir, folder, moved: Vec::new(), before: Vec::new() };
        let looked = view.clone();
        let looking = crate::world::blocking(move || {
            let is_unmarked = looked.marks == Marks::default();
            let before = if is_unmarked { looked.sighted() } else { Vec::new() };
            (looked.is_visible(), before)
        });
        let visible = match tokio::time::timeout(FOLDER_LIMIT, looking).await {
            Ok(Ok((visible, before))) => {
                view.before = before.into_iter().map(|f| f.path).collect();
                visible
            }
            Ok(Err(_)) | Err(_) => false,
        };
        let known = SearchState { view: Arc::new(view), seen: BTreeMap::new(), made: false };
        Self { known: Arc::new(Mutex::new(known)), paths: Arc::new(target.paths.clone()), visible }
    }

    /// The files of a window that was opened at `sent_at` by an agent before this one, `moved` being
    /// those that it had put into the bundle already.
    pub(super) async fn of_before(
        target: &TargetHandle,
        request: &StartRequest,
        sent_at: Time,
        moved: Vec<PathBuf>,
    ) -> Self {
        let files = Self::new(target, request).await;
        let mut before = files.lock().view.before.clone();
        let older = crate::world::blocking(move || {
            before.retain(|path| modified(path).is_none_or(|at| at < sent_at));
            before
        });
        // A task that panics leaves none: they are read, and their marks decide.
        let older = older.await.unwrap_or_default();
        let mut known = files.lock();
        let view = Arc::make_mut(&mut known.view);
        (view.before, view.moved) = (older, moved);
        drop(known);
        files
    }

    /// A log line of the window names the folder of its files.
    pub(super) fn learn(&self, dir: &str) {
        let mut known = self.lock();
        if known.view.marks.dir.is_none() && known.view.marks.show_in_log() {
            let view = Arc::make_mut(&mut known.view);
            view.folder = Some(self.paths.agent_view(dir));
            view.server_dir = Some(dir.to_owned());
        }
    }

    /// Whether files can be expected to be seen.
    pub(super) const fn are_visible(&self) -> bool {
        self.visible
    }

    pub(super) fn server_dir(&self) -> Option<String> {
        self.lock().view.server_dir.clone()
    }

    /// No file was found, and the agent cannot see the folder.
    pub(super) async fn is_remote(&self) -> bool {
        if !self.lock().seen.is_empty() {
            return false;
        }
        let folder = self.lock().view.folder.clone();
        let looking = crate::world::blocking(move || folder.as_deref().is_some_and(Path::is_dir));
        !matches!(tokio::time::timeout(FOLDER_LIMIT, looking).await, Ok(Ok(true)))
    }

    /// Scans the folder and reads the files that have stopped growing; tells the events of the window one by
    /// one, for a file may take long to read.
    pub(super) async fn scan(&self, mut tell: impl FnMut(Event)) {
        let (view, wants_made) = {
            let known = self.lock();
            (known.view.clone(), !known.made && known.view.marks.dir.is_some())
        };
        let (engine, ranks) = (view.engine, view.ranks.clone());
        let scan = crate::world::blocking(move || {
            let made = wants_made && view.folder.as_deref().is_some_and(Path::is_dir);
            (made, view.sighted())
        });
        // A scan that panics found nothing.
        let (made, sighted) = scan.await.unwrap_or_default();
        if made {
            self.lock().made = true;
            tell(Event::File { rank: None, whole: false });
        }
        for sighted in sighted {
            let known = self.lock().seen.get(&sighted.path).cloned();
            let grows = known.as_ref().is_none_or(|seen| seen.last != sighted);
            let is_read = known.is_some_and(|seen| seen.read.is_some());
            if grows {
                if !engine.accounts_for_every_rank() {
                    tell(Event::File { rank: None, whole: false });
                }
                self.lock().seen.insert(sighted.path.clone(), FileProgress { last: sighted, read: None });
            } else if !is_read && let Some(event) = self.read(sighted, engine, &ranks).await {
                tell(event);
            }
        }
    }

    async fn read(&self, sighted: FoundFile, engine: ServerKind, ranks: &[Rank]) -> Option<Event> {
        let path = sighted.path.clone();
        let mut artifact = crate::world::blocking(move || inspect(&path, engine)).await.ok()?.ok()?;
        artifact.rank = artifact.rank.map(|named| rank_among(engine, ranks, named));
        let event = Event::File { rank: artifact.rank, whole: artifact.whole };
        self.lock().seen.insert(sighted.path.clone(), FileProgress { last: sighted, read: Some(artifact) });
        Some(event)
    }

    /// Everything that was read, in the order of the names.
    pub(super) fn artifacts(&self) -> Vec<Artifact> {
        self.lock().seen.values().filter_map(|seen| seen.read.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, SearchState> {
        crate::world::lock(&self.known)
    }
}

impl View {
    /// Of the folder that will be made, the parent must be there.
    fn is_visible(&self) -> bool {
        let Some(folder) = &self.folder else { return false };
        let wanted = if self.marks.dir.is_some() { folder.parent().unwrap_or(folder) } else { folder };
        wanted.is_dir()
    }

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
