//! Our exposition parser beside prometheus-parse, on what both accept, and on what only one does.

use std::path::{Path, PathBuf};

use prometheus_parse::{Scrape, Value};
use proptest::prelude::*;
use skewtrap_core::signal::exposition;

/// Name, sorted labels, value as text (NaN is not equal to itself).
type Row = (String, Vec<(String, String)>, String);

/// A recording, which lies beside the repository; `None`, said loudly, where it does not.
fn recording(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let found = ["../shared/recordings", "../../shared/recordings"].map(|at| root.join(at).join(name));
    let found = found.into_iter().find(|path| path.exists());
    if found.is_none() {
        eprintln!("SKIPPED: the recording {name} is not beside this repository");
    }
    found
}

fn ours(page: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    exposition::read(page.as_bytes(), |sample| {
        let mut labels: Vec<_> =
            sample.labels.iter().map(|(n, v)| (n.into_owned(), v.into_owned())).collect();
        labels.sort();
        let name = String::from_utf8_lossy(sample.name).into_owned();
        rows.push((name, labels, sample.value.to_string()));
    })
    .expect("a metrics page");
    rows.sort();
    rows
}

fn theirs(page: &str) -> Vec<Row> {
    let scrape = Scrape::parse(page.lines().map(|l| Ok(l.to_owned()))).expect("it reads lines");
    let mut rows: Vec<Row> = scrape
        .samples
        .into_iter()
        .map(|sample| {
            let mut labels: Vec<_> = sample.labels.iter().map(|(n, v)| (n.clone(), v.clone())).collect();
            labels.sort();
            let value = match sample.value {
                Value::Counter(v) | Value::Gauge(v) | Value::Untyped(v) => v.to_string(),
                other => format!("{other:?}"),
            };
            (sample.metric, labels, value)
        })
        .collect();
    rows.sort();
    rows
}

fn sample() -> impl Strategy<Value = String> {
    let label = ("[a-z_]{1,6}", "[a-zA-Z0-9 ./+-]{1,8}");
    let labels = proptest::collection::btree_map(label.0, label.1, 0..4);
    let value = prop_oneof![
        any::<f64>().prop_map(|v| v.to_string()),
        Just("NaN".to_owned()),
        Just("+Inf".to_owned())
    ];
    ("[a-z_][a-z0-9_]{0,12}", labels, value, proptest::option::of(0_i64..2_000_000_000_000)).prop_map(
        |(name, labels, value, stamp)| {
            let labels: Vec<_> = labels.into_iter().map(|(n, v)| format!("{n}=\"{v}\"")).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let stamp = stamp.map_or(String::new(), |s| format!(" {s}"));
            format!("{name}{labels} {value}{stamp}")
        },
    )
}

proptest! {
    #[test]
    fn what_both_accept_both_read_alike(lines in proptest::collection::vec(sample(), 1..12)) {
        let page = lines.join("\n");
        prop_assert_eq!(ours(&page), theirs(&page));
    }
}

#[test]
fn a_real_page_without_colons_is_read_alike_by_both() {
    let Some(path) = recording("sglang-0.5.16-dp4/http/v1_loads_prometheus.txt") else { return };
    let page = std::fs::read_to_string(path).expect("it is text");
    assert_eq!(ours(&page).len(), 108);
    assert_eq!(ours(&page), theirs(&page));
}

/// Why ours exists: these lines are legal, LLM servers print the first on every page, and the other
/// parser drops or corrupts each without a word. Should it learn them, nothing fails; it is told.
#[test]
fn legal_lines_that_the_other_parser_loses_are_read() {
    let (mut lost, mut wrong) = (0, 0);
    for (page, labels) in [
        ("sglang:num_running_reqs{dp_rank=\"2\"} 1", vec![("dp_rank", "2")]),
        ("vllm:prompt_tokens_total 1", vec![]),
        ("a{m=\"x,y\"} 1", vec![("m", "x,y")]),
        ("a{m=\"x}y\"} 1", vec![("m", "x}y")]),
        ("a{m=\"x=y\"} 1", vec![("m", "x=y")]),
        (r#"a{m="x\"y",n="2"} 1"#, vec![("m", "x\"y"), ("n", "2")]),
        ("a{} 1", vec![]),
        ("a {x=\"1\"} 1", vec![("x", "1")]),
        ("{\"my.metric\"} 1", vec![]),
    ] {
        let rows = ours(page);
        let wanted: Vec<_> = labels.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        assert_eq!(rows.len(), 1, "{page}");
        assert_eq!((&rows[0].1, rows[0].2.as_str()), (&wanted, "1"), "{page}");
        match theirs(page).first() {
            None => lost += 1,
            Some(row) if *row != rows[0] => wrong += 1,
            Some(_) => {}
        }
    }
    eprintln!("prometheus-parse loses {lost} and misreads {wrong} of 9 legal lines");
}
