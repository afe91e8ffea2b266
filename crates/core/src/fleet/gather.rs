//! A window whose ranks write their files on several hosts: the agent that opens it (the leader) says in the store
//! which ranks it expects, an agent on each node brings the summaries of its own ranks there, and the leader compares
//! them. Every expected rank ends as a summary, as a file that could not be used, or as missing.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::capture::facts::ServerKind;
use crate::capture::line::Marks;
use crate::capture::verify::expected_of;
use crate::printable::printable;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::Rank;

/// The version of the manifest and of the reports.
pub const VERSION: u32 = 1;
/// After the deadline of the stop, files are waited for so long: an export of a large server takes minutes.
pub const EXPORT: Duration = Duration::from_secs(120);
/// A node agent says that it is there this often; one that was not heard for three times as long is not waited for.
pub const NODE_EVERY: Duration = Duration::from_secs(30);

/// The folder of the windows of a pool.
pub fn windows_folder(pool: &str) -> String {
    format!("{pool}/windows")
}

/// The manifest of the window of that mark.
pub fn manifest_object(pool: &str, mark: &str) -> String {
    format!("{pool}/windows/{mark}/manifest.json")
}

/// The mark of the window whose manifest has that name.
pub fn mark_of_manifest(name: &str) -> Option<&str> {
    name.strip_suffix("/manifest.json")?.rsplit('/').next()
}

/// Whether a text is the mark of a window: it names folders, and another host wrote it.
fn is_mark(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !text.is_empty() && text.len() <= 200 && !text.starts_with('.') && text.chars().all(is_plain)
}

/// The folder of the nodes' reports of a window.
pub fn reports_folder(pool: &str, mark: &str) -> String {
    format!("{pool}/windows/{mark}/nodes")
}

/// What the node agent of a host reports of a window.
pub fn report_object(pool: &str, mark: &str, host: &str) -> String {
    format!("{pool}/windows/{mark}/nodes/{host}.json")
}

/// The summary of a rank of a window, by the rank's word.
pub fn summary_object(pool: &str, mark: &str, rank: &str) -> String {
    format!("{pool}/windows/{mark}/{rank}/summary.json")
}

/// The folder in which node agents say that they are there.
pub fn nodes_folder(pool: &str) -> String {
    format!("{pool}/nodes")
}

/// By what the node agent of a host says that it is there.
pub fn node_object(pool: &str, host: &str) -> String {
    format!("{pool}/nodes/{host}.json")
}

/// What a leader says of a window that it opens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowManifest {
    /// The version of this form.
    pub window: u32,
    pub incident: String,
    /// What marks its folder and files.
    pub mark: String,
    /// The configured name of the server.
    pub target: String,
    /// The leader's host.
    pub host: String,
    /// The engine that writes the files.
    pub engine: ServerKind,
    /// The folder of the files, in the server's view.
    pub dir: String,
    /// By what they are recognised in it.
    pub marks: Marks,
    /// The ranks that are expected to write one each.
    pub expected: Vec<Labels>,
    /// So many seconds after the store stamped this, no file is waited for any more.
    pub collect_s: f64,
}

impl WindowManifest {
    /// The manifest in the object of that name.
    ///
    /// # Errors
    /// It is none that this version can read, or of another window than its name says: a sentence.
    pub fn read(name: &str, object: &[u8]) -> Result<Self, String> {
        let manifest: Self = read_versioned(object, "window")?;
        if mark_of_manifest(name) != Some(&*manifest.mark) || !is_mark(&manifest.mark) {
            return Err("its mark is not that of its name".into());
        }
        if manifest.dir.split(['/', '\\']).any(|part| part == "..") {
            return Err("its folder leads out of itself".into());
        }
        Ok(manifest)
    }

    /// The expected ranks.
    pub fn ranks(&self) -> Vec<Rank> {
        self.expected.iter().filter_map(Rank::from_labels).collect()
    }
}

/// What a node agent brought of a window so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The version of this form.
    pub report: u32,
    /// The node.
    pub host: String,
    /// The agent's release.
    pub written_by: String,
    /// Each file that it has found.
    pub files: Vec<NodeFile>,
}

/// A file of a window on a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeFile {
    /// The rank, where the name of the file says it.
    pub rank: Option<Labels>,
    /// The file's name.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// The SHA-256 of its content.
    pub sha256: String,
    /// The object of its summary.
    pub summary: Option<String>,
    /// Why there is none.
    pub why: Option<String>,
}

impl NodeReport {
    /// The report in an object; its text is made safe to show, for another host wrote it.
    ///
    /// # Errors
    /// As [`WindowManifest::read`].
    pub fn read(object: &[u8]) -> Result<Self, String> {
        let mut report: Self = read_versioned(object, "report")?;
        let safe = |text: &mut String| *text = printable(text, 300).into_owned();
        safe(&mut report.host);
        for file in &mut report.files {
            safe(&mut file.file);
            file.why.iter_mut().for_each(safe);
        }
        Ok(report)
    }
}

/// What a node agent says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodePresence {
    /// The newest version of a manifest that it can read.
    pub reads: u32,
    pub host: String,
    /// Its release.
    pub written_by: String,
}

impl NodePresence {
    /// A sentence where that agent cannot read the manifests of `release`.
    pub fn complaint(&self, release: &str) -> Option<String> {
        let (host, theirs) = (printable(&self.host, 200), printable(&self.written_by, 40));
        (self.reads < VERSION).then(|| {
            format!(
                "the node agent on {host} is skewtrap {theirs} and cannot read the windows of this one ({release}), so its ranks are missing; bring all agents of the pool to one release"
            )
        })
    }
}

/// Reads an object whose version stands under `key`.
fn read_versioned<T: for<'de> Deserialize<'de>>(object: &[u8], key: &str) -> Result<T, String> {
    let value: serde_json::Value =
        serde_json::from_slice(object).map_err(|e| format!("it is no JSON: {e}"))?;
    let version = value.get(key).and_then(serde_json::Value::as_u64);
    match version {
        None => return Err(format!("it does not say which version of a {key} it is")),
        Some(found) if found > u64::from(VERSION) => {
            return Err(format!(
                "it is version {found} of a {key}, and this skewtrap reads up to {VERSION}: bring all agents of the pool to the newest release"
            ));
        }
        Some(_) => {}
    }
    serde_json::from_value(value).map_err(|e| format!("it is no {key}: {e}"))
}

/// What became of an expected rank.
#[derive(Clone, Debug, PartialEq)]
pub enum RankResult {
    /// The leader has its file itself.
    Here,
    /// Its summary is in the store.
    Summary {
        /// The node that brought it.
        host: String,
        object: String,
    },
    /// There is a file, and it cannot be used.
    Unusable {
        /// On which node.
        host: String,
        why: String,
    },
    /// Nobody has brought anything.
    Missing,
}

/// What of a window has come so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gathered {
    /// Each expected rank.
    pub ranks: BTreeMap<Rank, RankResult>,
    /// The nodes that have reported.
    pub hosts: Vec<String>,
    /// Sentences about node agents that could not be asked, and about files that nobody could read.
    pub remarks: Vec<String>,
}

impl Gathered {
    /// From what the nodes reported; `here` are the ranks whose files the leader has itself.
    pub fn new(manifest: &WindowManifest, here: &[Rank], reports: &[NodeReport]) -> Self {
        let expected = manifest.ranks();
        let mut ranks: BTreeMap<Rank, RankResult> =
            expected.iter().map(|rank| (*rank, RankResult::Missing)).collect();
        let files = reports.iter().flat_map(|r| r.files.iter().map(move |f| (&r.host, f)));
        let mut remarks = Vec::new();
        for (host, file) in files {
            if let (None, Some(why)) = (&file.rank, &file.why) {
                remarks.push(format!("{} on {host} cannot be used: {why}", file.file));
            }
            let named = file.rank.as_ref().and_then(Rank::from_labels);
            let Some(rank) = named.and_then(|named| expected_of(&expected, named)) else { continue };
            let result = match (&file.summary, &file.why) {
                (Some(object), _) => RankResult::Summary { host: host.clone(), object: object.clone() },
                (None, why) => RankResult::Unusable {
                    host: host.clone(),
                    why: why.clone().unwrap_or_else(|| "its node did not say why".into()),
                },
            };
            // A file that can be used goes before one that cannot.
            if !matches!(ranks.get(&rank), Some(RankResult::Summary { .. })) {
                ranks.insert(rank, result);
            }
        }
        for rank in here.iter().filter_map(|rank| expected_of(&expected, *rank)) {
            ranks.insert(rank, RankResult::Here);
        }
        Self { ranks, hosts: reports.iter().map(|r| r.host.clone()).collect(), remarks }
    }

    /// Whether something has come of every rank.
    pub fn is_complete(&self) -> bool {
        self.ranks.values().all(|result| *result != RankResult::Missing)
    }

    /// The objects of the summaries.
    pub fn summaries(&self) -> impl Iterator<Item = (&Rank, &str)> {
        self.ranks.iter().filter_map(|(rank, result)| match result {
            RankResult::Summary { object, .. } => Some((rank, object.as_str())),
            RankResult::Here | RankResult::Unusable { .. } | RankResult::Missing => None,
        })
    }

    /// Sentences about ranks of which nothing can be compared.
    pub fn notes(&self) -> Vec<String> {
        let hosts = match self.hosts.is_empty() {
            true => "no node has reported anything".to_owned(),
            false => format!("{} have reported", self.hosts.join(", ")),
        };
        let of_ranks = self
            .ranks
            .iter()
            .filter_map(|(rank, result)| match result {
                RankResult::Here | RankResult::Summary { .. } => None,
                RankResult::Unusable { host, why } => {
                    Some(format!("the file of {rank} on {host} cannot be used: {why}"))
                }
                RankResult::Missing => Some(format!(
                    "no file of {rank} came from any node in time ({hosts}): does a node agent run where that rank runs, and see its folder?"
                )),
            });
        of_ranks.chain(self.remarks.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> WindowManifest {
        WindowManifest {
            window: VERSION,
            incident: "i".into(),
            mark: "i".into(),
            target: "server".into(),
            host: "head".into(),
            engine: ServerKind::Sglang,
            dir: "/profiles/i".into(),
            marks: Marks { dir: Some("/profiles/i".into()), ..Marks::default() },
            expected: (0..4).map(|dp| Rank::dp(dp).labels()).collect(),
            collect_s: 150.0,
        }
    }

    fn file(dp: u16, why: Option<&str>) -> NodeFile {
        let summary = why.is_none().then(|| format!("prod/windows/i/dp{dp}/summary.json"));
        NodeFile {
            rank: Some(Rank::dp(dp).labels()),
            summary,
            why: why.map(str::to_owned),
            ..NodeFile::default()
        }
    }

    fn report(host: &str, files: Vec<NodeFile>) -> NodeReport {
        NodeReport { report: VERSION, host: host.into(), files, ..NodeReport::default() }
    }

    #[test]
    fn every_expected_rank_ends_as_here_as_a_summary_as_unusable_or_as_missing() {
        let reports = [
            report("n1", vec![file(1, None), file(2, Some("its gzip stream is cut off"))]),
            report("n2", vec![]),
        ];
        let gathered = Gathered::new(&manifest(), &[Rank::dp(0)], &reports);
        assert!(!gathered.is_complete());
        assert_eq!(
            gathered.summaries().collect::<Vec<_>>(),
            [(&Rank::dp(1), "prod/windows/i/dp1/summary.json")]
        );
        assert_eq!(
            gathered.notes(),
            [
                "the file of DP2 on n1 cannot be used: its gzip stream is cut off",
                "no file of DP3 came from any node in time (n1, n2 have reported): does a node agent run where that rank runs, and see its folder?"
            ]
        );
        let later = [report("n1", vec![file(1, None), file(2, None)]), report("n2", vec![file(3, None)])];
        let gathered = Gathered::new(&manifest(), &[Rank::dp(0)], &later);
        assert!(gathered.is_complete() && gathered.notes().is_empty());
    }

    #[test]
    fn a_manifest_whose_mark_or_folder_leads_elsewhere_is_none() {
        let read = |name: &str, mark: &str, dir: &str| {
            let of = WindowManifest { mark: mark.into(), dir: dir.into(), ..manifest() };
            WindowManifest::read(name, &serde_json::to_vec(&of).expect("plain data"))
        };
        assert!(read("prod/windows/i-w2/manifest.json", "i-w2", "/profiles/i-w2").is_ok());
        for mark in ["", "..", ".hidden", "../../etc", "/etc", "a/b", "i j"] {
            read(&manifest_object("prod", mark), mark, "/profiles/i").expect_err(mark);
            read(&manifest_object("prod", "i"), mark, "/profiles/i").expect_err(mark);
        }
        read(&manifest_object("prod", "i"), "i", "/profiles/../../etc").expect_err("a way out");
    }

    #[test]
    fn what_a_newer_agent_wrote_is_told_and_not_guessed_at() {
        let text = serde_json::to_vec(&manifest()).expect("plain data");
        let name = manifest_object("prod", "i");
        assert_eq!(WindowManifest::read(&name, &text), Ok(manifest()));
        let newer = String::from_utf8(text).expect("text").replace("\"window\":1", "\"window\":2");
        assert_eq!(
            WindowManifest::read(&name, newer.as_bytes()).expect_err("newer"),
            "it is version 2 of a window, and this skewtrap reads up to 1: bring all agents of the pool to the newest release"
        );
        assert_eq!(mark_of_manifest(&manifest_object("prod", "i-w2")), Some("i-w2"));
        assert_eq!(mark_of_manifest("prod/windows/i/nodes/n1.json"), None);
    }
}
