//! What changed since a capture of a healthy time, beside the verdict.

use std::path::{Path, PathBuf};

use crate::support::traces::{Rank, Slow, Style, write};
use skewtrap::agent::compare::{CompareRequest, run};
use skewtrap_trace::verdict::{Kind, Verdict};

fn healthy() -> Vec<Rank> {
    (0..4).map(|i| Rank::new(format!("DP-{i}"), None)).collect()
}

fn written(dir: &Path, name: &str, ranks: &[Rank], style: &Style) -> PathBuf {
    let folder = dir.join(name);
    std::fs::create_dir_all(&folder).expect("temporary folders can be made");
    write(&folder, ranks, style);
    folder
}

/// The verdict on `now` with `before` to tell what changed since, and the one without it.
fn verdicts(before: (&[Rank], &Style), now: (&[Rank], &Style)) -> [Verdict; 2] {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let reference = vec![written(dir.path(), "before", before.0, &Style { seed: 77, ..before.1.clone() })];
    let paths = vec![written(dir.path(), "now", now.0, now.1)];
    [reference, Vec::new()].map(|reference| {
        let request = CompareRequest { paths: paths.clone(), reference, ..CompareRequest::default() };
        run(&request, &|_| {}).expect("comparable").comparison.verdict
    })
}

#[test]
fn the_blamed_ranks_change_is_told_by_part_and_changes_no_verdict() {
    let mut now = healthy();
    now[2].host = 6.0;
    let style = Style::default();
    let [with, without] = verdicts((&healthy(), &style), (&now, &style));
    assert_eq!((with.kind, with.rank, with.confidence), (without.kind, without.rank, without.confidence));
    assert!(with.sentence.starts_with(&without.sentence), "{}", with.sentence);
    let since = with.since_baseline.expect("there is a baseline");
    assert_eq!(since.rank.map(|rank| rank.to_string()).as_deref(), Some("DP2"));
    assert!(since.now_ms.host > 4.0 * since.before_ms.host, "{since:?}");
    assert!(with.sentence.contains(" Since the baseline DP2's steps take "), "{}", with.sentence);
    assert!(with.sentence.contains(": host time +") && with.sentence.ends_with("at equal batches."));
    assert_eq!(without.since_baseline, None);
}

#[test]
fn all_ranks_that_got_slower_alike_are_told_and_ranks_as_before_are_not() {
    let style = Style::default();
    for (factor, told) in [(3.0, true), (1.0, false)] {
        let mut now = healthy();
        now.iter_mut().for_each(|rank| rank.host = factor);
        let [with, _] = verdicts((&healthy(), &style), (&now, &style));
        assert_eq!((with.kind, with.rank), (Kind::NoFinding, None));
        let all = " Since the baseline the steps of all ranks take ";
        assert_eq!(with.sentence.contains(all), told, "{}", with.sentence);
    }
    // Twice the requests take longer, and that is no change of the ranks.
    let mut now = healthy();
    now.iter_mut().for_each(|rank| (rank.batch, rank.host) = (24.0, 3.0));
    let [with, _] = verdicts((&healthy(), &style), (&now, &style));
    assert_eq!(with.since_baseline, None);
}

#[test]
fn host_times_under_other_activities_are_not_compared_and_gpu_work_is() {
    let mut now = healthy();
    now[1].slow = Slow::all(1.5);
    let cpu = Style { cpu: true, ..Style::default() };
    let [with, _] = verdicts((&healthy(), &Style::default()), (&now, &cpu));
    let since = with.since_baseline.clone().expect("there is a baseline");
    assert!(!since.is_host_comparable);
    assert!(with.sentence.contains(" Since the baseline DP1's steps need GPU work of "), "{}", with.sentence);
    assert!(!with.sentence.contains("host time +"), "{}", with.sentence);
}
