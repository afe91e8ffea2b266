//! What nsys prints, read; and which session is the target's.
//!
//! Its exit status proves nothing: a start on a session that is gone is rc 0 with 2025.3. So states
//! are read back, and where a report went is read from `Generated:`.

use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

use crate::capture::NsysSession;
use crate::printable::{LIMIT, printable};
use skewtrap_trace::time::Time;

/// One row of `nsys sessions list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its number.
    pub id: String,
    /// Its name; may hold spaces.
    pub name: String,
    /// Its state, in nsys's own word.
    pub state: String,
}

/// What a session's state allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// `DelayedCollection`, `Launched`: a start is possible.
    Ready,
    /// `Collection`: it collects.
    Collecting,
    /// `Shutdown`: the application is gone.
    Gone,
    /// Any other state, unknown words included: it is busy.
    Busy,
}

impl Readiness {
    /// In a sentence: `collecting`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Collecting => "collecting",
            Self::Busy => "busy",
            Self::Gone => "gone",
        }
    }
}

impl Session {
    /// What its state allows.
    pub fn readiness(&self) -> Readiness {
        match self.state.as_str() {
            "DelayedCollection" | "Launched" => Readiness::Ready,
            "Collection" => Readiness::Collecting,
            "Shutdown" => Readiness::Gone,
            _ => Readiness::Busy,
        }
    }
}

/// Why no session can be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoSession {
    /// None is known by that name or number.
    #[error("nsys knows no session {wanted}; it has {list}")]
    Unknown {
        /// What was asked for.
        wanted: String,
        /// The sessions that exist.
        list: String,
    },
    /// Nothing listens where the target should.
    #[error(
        "no process of this machine (or none that the agent may see) listens on the target's port {port}; the agent must share the server's machine, process namespace and user, or name the session: capture: {{ nsys: {{ session: NAME }} }}"
    )]
    NoListener { port: u16 },
    /// The server is under nsys, whose session the agent does not see.
    #[error(
        "the server (process {pid}) runs under nsys (process {nsys}), but nsys shows the agent no session of it, it has {list}: {why}"
    )]
    OutOfSight {
        /// The listener.
        pid: u32,
        nsys: u32,
        /// The sessions that exist.
        list: String,
        /// What differs, and how to correct it.
        why: String,
    },
    /// The server is not under nsys.
    #[error(
        "the server (process {pid}) runs under no nsys session that can be proven; nsys has {list}. Start it as: nsys profile --start-later=true --trace-fork-before-exec=true --cuda-graph-trace=node -o sglang.out python3 -m sglang.launch_server ..., or name the session: capture: {{ nsys: {{ session: NAME }} }}"
    )]
    NotUnderNsys {
        /// The listener.
        pid: u32,
        /// The sessions that exist.
        list: String,
    },
}

/// A process as `/proc` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// `NSYS_PROFILING_SESSION_ID` in its environment, where that can be read.
    pub session_id: Option<String>,
    /// The user that owns it.
    pub user: Option<u32>,
    /// Where it puts temporary files; `None` where its environment cannot be read.
    pub tmpdir: Option<String>,
}

/// By what nsys decides which sessions the agent gets to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Viewer {
    /// The agent's user.
    pub user: u32,
    /// The agent's `$TMPDIR`, or `/tmp`.
    pub tmpdir: String,
}

/// Who started the collection that a session does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CollectionOwner {
    /// It began when ours was started.
    Ours,
    /// It began at another time.
    Theirs,
    /// That cannot be determined.
    Unknown,
}

/// Clocks of file systems are a little coarse.
const COARSE: Duration = Duration::from_secs(2);
/// A start takes effect within a second; on a machine that is very busy within this.
const PROMPT: Duration = Duration::from_secs(10);
/// No start of ours takes longer.
pub const LONGEST_START: Duration = Duration::from_secs(60);

/// Who started the collection that began at `began`, when a start of ours was sent at `sent_at` to a session
/// that was ready just before. Neither the list of sessions nor a report contains who started a collection:
/// only when it began can be read. A beginning before the session was ready is impossible: it shows that the
/// clock is wrong, and proves nothing.
pub fn owner_of(began: Option<Time>, sent_at: Time) -> CollectionOwner {
    match began {
        Some(at) if at > sent_at + LONGEST_START => CollectionOwner::Theirs,
        Some(at) if at + COARSE >= sent_at && at <= sent_at + PROMPT => CollectionOwner::Ours,
        _ => CollectionOwner::Unknown,
    }
}

/// Reads `sessions list -f json`; `None` when it is no JSON.
pub fn sessions_of_json(text: &str) -> Option<Vec<Session>> {
    let value: Value = serde_json::from_slice(text.trim().as_bytes()).ok()?;
    let rows = value.as_array().or_else(|| value.get("sessions")?.as_array())?;
    let field = |row: &Value, name: &str| {
        let found = row.as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?.1;
        Some(found.as_str().map_or_else(|| found.to_string(), str::to_owned))
    };
    rows.iter()
        .map(|row| {
            Some(Session { id: field(row, "id")?, name: field(row, "name")?, state: field(row, "state")? })
        })
        .collect()
}

/// Reads the columns `ID TIME STATE LAUNCH NAME`; the name is the rest of the line.
pub fn sessions_of_columns(text: &str) -> Vec<Session> {
    let row = |line: &str| {
        let mut rest = line.trim();
        let mut word = || {
            let end = rest.find(char::is_whitespace)?;
            let (word, after) = rest.split_at(end);
            rest = after.trim_start();
            Some(word.to_owned())
        };
        let (id, _time, state, _launch) = (word()?, word()?, word()?, word()?);
        let is_number = id.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| Session { id, state, name: rest.trim().to_owned() })
    };
    text.lines().filter_map(row).collect()
}

/// Where a stop really put its report: the last path after `Generated:`.
pub fn generated(stdout: &str) -> Option<String> {
    // Progress bars overwrite themselves with carriage returns.
    let lines: Vec<&str> = stdout.split(['\n', '\r']).map(str::trim).collect();
    let at = lines.iter().rposition(|line| line.starts_with("Generated:"))?;
    let same = lines[at].strip_prefix("Generated:").map(str::trim).filter(|rest| !rest.is_empty());
    let path = same.or_else(|| lines[at + 1..].iter().copied().find(|line| !line.is_empty()))?;
    Some(path.trim_matches('"').to_owned())
}

/// The importer's own complaint, where a `.qdstrm` was left instead of a report; or the disk's.
pub fn importer_error(stderr: &str) -> Option<String> {
    let complains = |l: &&str| l.contains("mporter") || l.contains("No space left");
    let lines = stderr.lines().map(str::trim).filter(complains);
    let text = lines.collect::<Vec<_>>().join(" ");
    (!text.is_empty()).then_some(text)
}

/// The session to use. `ancestors` are the listener on the target's port and its parents, nearest
/// first; the target's session is the one whose nsys process is among them.
///
/// # Errors
/// It cannot be proven: nobody else's session is ever touched.
pub fn choose<'s>(
    wanted: &NsysSession,
    sessions: &'s [Session],
    ancestors: &[Process],
    viewer: &Viewer,
    port: u16,
) -> Result<&'s Session, NoSession> {
    if let NsysSession::Named(name) = wanted {
        let found = sessions.iter().find(|s| s.id == *name || s.name == *name);
        return found.ok_or_else(|| NoSession::Unknown { wanted: name.clone(), list: list(sessions) });
    }
    let listener = ancestors.first().ok_or(NoSession::NoListener { port })?;
    let wrapper = ancestors.iter().skip(1).find(|p| is_nsys(p));
    let by_environment = ancestors
        .iter()
        .filter_map(|p| p.session_id.as_ref())
        .find_map(|id| sessions.iter().find(|s| s.id == *id));
    let by_name = || {
        ancestors.iter().skip(1).filter(|p| is_nsys(p)).find_map(|process| {
            let name = session_new(&process.argv).unwrap_or_else(|| format!("profile-{}", process.pid));
            sessions.iter().find(|s| s.name == name)
        })
    };
    by_environment.filter(|_| wrapper.is_some()).or_else(by_name).ok_or_else(|| match wrapper {
        None => NoSession::NotUnderNsys { pid: listener.pid, list: list(sessions) },
        Some(nsys) => NoSession::OutOfSight {
            pid: listener.pid,
            nsys: nsys.pid,
            list: list(sessions),
            why: out_of_sight(nsys, viewer),
        },
    })
}

/// Sessions are files below `$TMPDIR` that only their user may open.
fn out_of_sight(nsys: &Process, viewer: &Viewer) -> String {
    let mut reasons = Vec::new();
    if let Some(user) = nsys.user.filter(|user| *user != viewer.user) {
        reasons.push(format!(
            "it runs as user {user} and the agent as user {}, so run the agent as user {user}",
            viewer.user
        ));
    }
    if let Some(theirs) = nsys.tmpdir.as_ref().filter(|theirs| **theirs != viewer.tmpdir) {
        reasons.push(format!(
            "its TMPDIR is {theirs} and the agent's is {}, so start the agent with TMPDIR={theirs}",
            viewer.tmpdir
        ));
    }
    if reasons.is_empty() {
        return "the agent must use the server's own nsys, the same release".into();
    }
    reasons.join("; ")
}

fn is_nsys(process: &Process) -> bool {
    // A script's interpreter comes first in its own arguments.
    process.argv.iter().take(2).any(|word| {
        let name = word.rsplit('/').next().unwrap_or_default();
        matches!(name, "nsys" | "nsys-launcher")
    })
}

fn session_new(argv: &[String]) -> Option<String> {
    argv.iter().zip(argv.iter().skip(1).map(Some).chain([None])).find_map(|(word, next)| {
        match word.strip_prefix("--session-new") {
            Some("") => next.cloned(),
            Some(rest) => rest.strip_prefix('=').map(str::to_owned),
            None => None,
        }
    })
}

fn list(sessions: &[Session]) -> String {
    if sessions.is_empty() {
        return "no session (it shows those of its own user and TMPDIR only)".into();
    }
    let shown = |text: &str| printable(text, LIMIT).into_owned();
    let rows = sessions.iter().map(|s| format!("{} ({}, {})", shown(&s.name), shown(&s.id), shown(&s.state)));
    rows.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &str = "              ID         TIME                       STATE LAUNCH NAME\n           10514        00:02                    Launched      1 mysess\n         1024422        00:09           DelayedCollection      1 profile-7-python3 -m x\n";

    fn session(id: &str, name: &str, state: &str) -> Session {
        Session { id: id.into(), name: name.into(), state: state.into() }
    }

    fn process(pid: u32, argv: &[&str], id: Option<&str>) -> Process {
        let argv = argv.iter().map(|&a| a.to_owned()).collect();
        Process { pid, argv, session_id: id.map(str::to_owned), ..Process::default() }
    }

    #[test]
    fn sessions_are_read_from_columns_and_from_json() {
        let wanted = [
            session("10514", "mysess", "Launched"),
            session("1024422", "profile-7-python3 -m x", "DelayedCollection"),
        ];
        assert_eq!(sessions_of_columns(COLUMNS), wanted);
        let json = r#"[{"id": 10514, "time": "00:02", "state": "Launched", "launch": 1, "name": "mysess"}]"#;
        assert_eq!(sessions_of_json(json), Some(wanted[..1].to_vec()));
        assert_eq!(sessions_of_json("unrecognised option '-f'"), None);
        assert_eq!(
            sessions_of_columns("              ID         TIME                       STATE LAUNCH NAME\n"),
            []
        );
    }

    #[test]
    fn where_the_report_went_is_read_behind_progress_bars() {
        let output = "Generating '/tmp/nsys-report-5f.qdstrm'\n\r[1/1] [0%  ] w1.nsys-rep\r[1/1] [===100%] w1.nsys-rep\nGenerated:\n    /tmp/w 1.nsys-rep\n";
        assert_eq!(generated(output).as_deref(), Some("/tmp/w 1.nsys-rep"));
        assert_eq!(generated("The request is not applicable"), None);
    }

    #[test]
    fn only_a_session_whose_nsys_is_an_ancestor_of_the_listener_is_the_targets() {
        let sessions = [session("1", "theirs", "Launched"), session("2", "profile-50", "DelayedCollection")];
        let under = |argv: &[&str], id| vec![process(90, &["python3"], id), process(50, argv, None)];
        let chosen = |ancestors: &[Process]| {
            choose(&NsysSession::OfTarget, &sessions, ancestors, &Viewer::default(), 30000).cloned()
        };
        assert_eq!(chosen(&under(&["/opt/nsys", "profile"], None)), Ok(sessions[1].clone()));
        assert_eq!(chosen(&under(&["nsys-launcher"], Some("1"))), Ok(sessions[0].clone()));
        assert_eq!(
            chosen(&under(&["sh", "/x/nsys", "launch", "--session-new", "theirs"], None)),
            Ok(sessions[0].clone())
        );
        // A process that outlives its nsys keeps the environment: alone the variable proves nothing.
        assert!(matches!(chosen(&under(&["bash"], Some("1"))), Err(NoSession::NotUnderNsys { pid: 90, .. })));
        assert_eq!(chosen(&[]), Err(NoSession::NoListener { port: 30000 }));
    }

    #[test]
    fn a_named_session_is_found_by_name_or_number_or_refused_with_the_list() {
        let sessions = [session("7", "mine", "Launched")];
        for wanted in ["7", "mine"] {
            assert!(
                choose(&NsysSession::Named(wanted.into()), &sessions, &[], &Viewer::default(), 1).is_ok()
            );
        }
        let refused =
            choose(&NsysSession::Named("x".into()), &sessions, &[], &Viewer::default(), 1).unwrap_err();
        assert_eq!(refused.to_string(), "nsys knows no session x; it has mine (7, Launched)");
    }

    #[test]
    fn a_session_that_the_agent_does_not_see_is_told_with_what_differs() {
        let seen_by = |user, tmpdir: &str| {
            let nsys = Process {
                user: Some(1000),
                tmpdir: Some("/scratch".into()),
                ..process(50, &["nsys", "profile"], None)
            };
            let chain = [process(90, &["python3"], None), nsys];
            let viewer = Viewer { user, tmpdir: tmpdir.into() };
            choose(&NsysSession::OfTarget, &[], &chain, &viewer, 30000).unwrap_err().to_string()
        };
        let why = seen_by(1000, "/tmp");
        assert!(
            why.ends_with(
                "its TMPDIR is /scratch and the agent's is /tmp, so start the agent with TMPDIR=/scratch"
            ),
            "{why}"
        );
        assert!(why.contains("(process 90) runs under nsys (process 50)"), "{why}");
        let why = seen_by(1001, "/scratch");
        assert!(
            why.ends_with("it runs as user 1000 and the agent as user 1001, so run the agent as user 1000"),
            "{why}"
        );
        assert!(seen_by(1000, "/scratch").ends_with("the server's own nsys, the same release"));
    }

    #[test]
    fn a_collection_is_ours_only_if_it_began_when_ours_was_started() {
        let sent_at = Time::from_epoch_s(1000.0);
        let began = |s: f64| owner_of(Some(Time::from_epoch_s(1000.0 + s)), sent_at);
        assert_eq!([began(-1.9), began(0.1), began(10.0)], [CollectionOwner::Ours; 3]);
        assert_eq!([began(60.1), began(86_400.0)], [CollectionOwner::Theirs; 2]);
        assert_eq!(
            [began(-2.1), began(10.1), began(60.0), owner_of(None, sent_at)],
            [CollectionOwner::Unknown; 4]
        );
    }

    #[test]
    fn an_unknown_state_is_busy() {
        assert_eq!(session("1", "a", "RangeGeneration").readiness(), Readiness::Busy);
    }
}
