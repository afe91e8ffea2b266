//! Which bundles were taken as baselines, by server, and whose pin protects one: the agent's own, which ends
//! with the next baseline, or a person's, which stays.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::{BundleError, Bundles, failed};
use skewtrap_core::incident::{Incident, Record};
use skewtrap_trace::time::Time;

/// The file whose presence protects a bundle; what people pin has an empty one.
pub(super) const PIN: &str = "pinned";
/// What the agent writes into it.
const BY_AGENT: &[u8] = b"baseline\n";

/// The incidents that were taken as baselines, by server. Every record is read once for it, and not again for
/// each comparison.
#[derive(Debug, Default)]
pub(super) struct BaselineIndex(Option<BTreeMap<Arc<str>, BTreeSet<Arc<str>>>>);

impl BaselineIndex {
    /// Takes a record that was written.
    pub(super) fn note(&mut self, incident: &Incident) {
        if let (true, Some(known)) = (incident.is_baseline, &mut self.0) {
            known.entry(incident.target.clone()).or_default().insert(incident.id.clone());
        }
    }

    /// The incidents of a server; `all` reads every record, where that was not done yet.
    fn of(&mut self, server: &str, all: impl FnOnce() -> Vec<Record>) -> Vec<Arc<str>> {
        if self.0.is_none() {
            self.0 = Some(BTreeMap::new());
            all().iter().for_each(|record| self.note(&record.incident));
        }
        self.0.iter().flat_map(|known| known.get(server)).flatten().cloned().collect()
    }

    /// Forgets the bundles of a server that are gone.
    fn forget(&mut self, server: &str, is_gone: impl Fn(&str) -> bool) {
        if let Some(ids) = self.0.as_mut().and_then(|known| known.get_mut(server)) {
            ids.retain(|id| !is_gone(id));
        }
    }

    /// Bundles appeared that no write was noted of.
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }
}

impl Bundles {
    /// The newest baselines of a server, the newest first: captures before `before` that were taken for that,
    /// and in which no rank stood out.
    pub fn baselines(&self, server: &str, before: Time) -> Vec<Record> {
        let ids = {
            let mut index = self.index();
            index.forget(server, |id| !self.path(id).exists());
            index.of(server, || self.records().collect())
        };
        let records = ids.iter().filter_map(|id| self.read(id).filter(|r| r.incident.id == *id));
        let is_it = |r: &Record| {
            r.incident.serves_as_baseline() && *r.incident.target == *server && r.incident.fired_at < before
        };
        let mut found: Vec<Record> = records.filter(is_it).collect();
        found.sort_by_key(|record| std::cmp::Reverse(record.incident.fired_at));
        found
    }

    /// Protects a baseline from deletion, and no longer those of the same server that are older, unless a
    /// person pinned them.
    ///
    /// # Errors
    /// A mark cannot be written or removed.
    pub fn keep_baseline(&self, baseline: &Incident) -> Result<(), BundleError> {
        let mark = self.path(&baseline.id).join(PIN);
        if !mark.exists() && self.read(&baseline.id).is_some() {
            fs::write(&mark, BY_AGENT).map_err(|e| failed(&mark, e))?;
        }
        for older in self.baselines(&baseline.target, baseline.fired_at) {
            let mark = self.path(&older.incident.id).join(PIN);
            if is_by_agent(&mark) {
                fs::remove_file(&mark).map_err(|e| failed(&mark, e))?;
            }
        }
        Ok(())
    }

    /// Protects a bundle from deletion because a person says so, or ends that; returns whether there is such a bundle.
    ///
    /// # Errors
    /// The mark cannot be written or removed.
    pub fn pin(&self, incident: &str, pinned: bool) -> Result<bool, BundleError> {
        if self.read(incident).is_none() {
            return Ok(false);
        }
        let mark = self.path(incident).join(PIN);
        let done = match (pinned, mark.exists()) {
            (true, false) => fs::write(&mark, b""),
            // From now on it is the person's.
            (true, true) if is_by_agent(&mark) => fs::write(&mark, b""),
            (false, true) => fs::remove_file(&mark),
            _ => Ok(()),
        };
        done.map(|()| true).map_err(|e| failed(&mark, e))
    }
}

fn is_by_agent(mark: &Path) -> bool {
    fs::read(mark).is_ok_and(|text| text == BY_AGENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::act::record_of_a_test;
    use crate::act::retention::folders;
    use skewtrap_core::capture::captured::{Captured, CapturedFile};
    use skewtrap_core::incident::{CaptureOutcome, VerdictNote};
    use skewtrap_trace::verdict::{Confidence, Kind};

    fn record(id: &str, fired_at_s: f64) -> Record {
        let mut record = record_of_a_test(id, fired_at_s);
        record.incident.is_baseline = true;
        let files = vec![CapturedFile::default()];
        record.incident.capture = CaptureOutcome::Done(Captured { files, ..Captured::default() });
        record.incident.verdict = Some(VerdictNote {
            kind: Kind::NoFinding,
            rank: None,
            by: None,
            sentence: String::new(),
            lost_ms_per_step: None,
            confidence: Confidence::Low,
            confirms: None,
            suspect: None,
        });
        assert!(record.incident.serves_as_baseline());
        record
    }

    fn ids(found: &[Record]) -> Vec<&str> {
        found.iter().map(|r| &*r.incident.id).collect()
    }

    #[test]
    fn a_newer_baseline_takes_off_the_agents_pin_of_the_older_ones_and_no_persons() {
        let dir = tempfile::tempdir().unwrap();
        let bundles = Bundles::open(dir.path(), "agent".into()).unwrap();
        let pinned = || {
            let all = folders(dir.path(), "agent").into_iter().filter(|b| b.pinned);
            let mut all: Vec<String> = all.map(|b| b.incident).collect();
            all.sort();
            all
        };
        for (id, at) in [("b1", 1.0), ("b2", 2.0), ("b3", 3.0), ("b4", 4.0)] {
            let record = record(id, at);
            bundles.create(&record, b"").unwrap();
            bundles.keep_baseline(&record.incident).unwrap();
            match id {
                // One that the agent had pinned, and one that nobody protects any longer.
                "b2" => assert!(bundles.pin("b2", true).unwrap()),
                "b3" => assert!(bundles.pin("b1", true).unwrap() && bundles.pin("b1", false).unwrap()),
                _ => {}
            }
        }
        assert_eq!(pinned(), ["b2", "b4"]);
        assert!(bundles.pin("b2", false).unwrap());
        assert_eq!(pinned(), ["b4"]);
    }

    #[test]
    fn baselines_of_a_server_are_found_newest_first_whenever_they_were_written_and_not_once_they_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let bundles = Bundles::open(dir.path(), "agent".into()).unwrap();
        let before = Time::from_epoch_s(100.0);
        bundles.create(&record("b1", 1.0), b"").unwrap();
        bundles.create(&record_of_a_test("incident", 2.0), b"").unwrap();
        let mut foreign = record("b2", 2.0);
        foreign.agent = "another".into();
        bundles.create(&foreign, b"").unwrap();
        // Those of an agent before this one are found as well.
        let bundles = Bundles::open(dir.path(), "agent".into()).unwrap();
        assert_eq!(ids(&bundles.baselines("server", before)), ["b1"]);
        // Judged only after it was written.
        let mut newer = record("b3", 3.0);
        let verdict = newer.incident.verdict.take();
        bundles.create(&newer, b"").unwrap();
        assert_eq!(ids(&bundles.baselines("server", before)), ["b1"]);
        newer.incident.verdict = verdict;
        bundles.update(newer.incident).unwrap();
        assert_eq!(ids(&bundles.baselines("server", before)), ["b3", "b1"]);
        assert_eq!(ids(&bundles.baselines("server", Time::from_epoch_s(3.0))), ["b1"]);
        assert!(bundles.baselines("another", before).is_empty());
        fs::remove_dir_all(dir.path().join("b1")).unwrap();
        assert_eq!(ids(&bundles.baselines("server", before)), ["b3"]);
    }

    #[test]
    fn every_record_is_read_once_however_often_baselines_are_asked_for() {
        let (mut index, mut scans) = (BaselineIndex::default(), 0);
        for server in ["server", "another", "server"] {
            let known = index.of(server, || {
                scans += 1;
                vec![record("b1", 1.0), record_of_a_test("incident", 2.0)]
            });
            assert_eq!(known.len(), usize::from(server == "server"));
        }
        assert_eq!(scans, 1);
        index.note(&record("b2", 3.0).incident);
        assert_eq!(index.of("server", Vec::new).len(), 2);
    }
}
