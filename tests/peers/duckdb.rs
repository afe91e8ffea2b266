//! The index of a store read by DuckDB, with the very query of the documentation.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use skewtrap_core::finding::{Finding, Side};
use skewtrap_core::fleet::{IndexLine, index_of};
use skewtrap_core::incident::Incident;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// The store in the query, and where it is here.
const STORE: &str = "s3://traces/skewtrap";
const POOL: &str = "prod-a";

/// A Python that has DuckDB: `SKEWTRAP_DUCKDB`, or the usual one. `None`, loudly, where there is none.
fn python() -> Option<String> {
    let python = std::env::var("SKEWTRAP_DUCKDB").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python).args(["-c", "import duckdb"]).output();
    if has.is_ok_and(|out| out.status.success()) {
        return Some(python);
    }
    eprintln!(
        "SKIPPED: the query of the documentation in DuckDB (pip install duckdb; SKEWTRAP_DUCKDB names its Python)"
    );
    None
}

fn query_of_the_documentation() -> String {
    let page = include_str!("../../docs/fleet.md");
    let (_, rest) = page.split_once("```sql\n").expect("the page has a query");
    rest.split_once("```").expect("it ends").0.trim().trim_end_matches(';').to_owned()
}

fn incident(pool: &Path, host: &str, rule: &str, rank: u16, at_s: f64, number: u32) {
    let at = Time::from_epoch_s(at_s);
    let finding = Finding::of(Rank::dp(rank).labels(), Side::High, at);
    let id: Arc<str> = format!("2026112{}T0348{number:02}Z-{rule}-3f9a", 4 + number % 2).into();
    let incident = Incident::new(id, rule.into(), "chat".into(), at, finding);
    let path = pool.join(index_of(POOL, &incident));
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    std::fs::write(path, IndexLine::new(POOL, host, &incident).object()).expect("written");
}

#[test]
fn duckdb_finds_the_ranks_that_come_back_by_the_query_of_the_documentation() {
    let Some(python) = python() else { return };
    let store = tempfile::tempdir().expect("a folder");
    let day = 1_795_492_106.0;
    for (number, (host, rule, rank, days)) in [
        ("gpu7", "dp-load-skew", 2, 0.0),
        ("gpu7", "stuck-rank", 2, 1.0),
        ("gpu7", "stuck-rank", 0, 1.0),
        ("gpu8", "stuck-rank", 2, 0.0),
    ]
    .into_iter()
    .enumerate()
    {
        incident(store.path(), host, rule, rank, day + days * 86_400.0, number as u32);
    }
    let query = query_of_the_documentation();
    assert!(query.contains(STORE), "the documentation reads another store: {query}");
    let query = query.replace(STORE, &store.path().display().to_string());
    let script = "import duckdb, json, sys\nfound = duckdb.sql(sys.argv[1])\nprint(json.dumps([dict(zip(found.columns, row)) for row in found.fetchall()]))";
    let out = Command::new(python).args(["-c", script, &query]).output().expect("it runs");
    assert!(out.status.success(), "{query}\n{}", String::from_utf8_lossy(&out.stderr));
    let rows: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let rows = rows.as_array().expect("rows");
    assert_eq!(rows.len(), 1, "one rank of one host came back: {rows:#?}");
    let row = &rows[0];
    assert_eq!(
        (&row["host"], &row["target"], &row["rank"], &row["incidents"]),
        (&"gpu7".into(), &"chat".into(), &"DP2".into(), &2.into())
    );
    let mut rules: Vec<&str> =
        row["rules"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    rules.sort_unstable();
    assert_eq!((rules, &row["stalled_s"]), (vec!["dp-load-skew", "stuck-rank"], &0.0.into()));
}
