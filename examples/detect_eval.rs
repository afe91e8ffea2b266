//! How early, how rightly and how wrongly the shipped detection fires, on logs with known truth.
//!
//! `cargo run --release --example detect_eval -- DIR...` reads what `simload.py gen DIR ...` wrote:
//! `labels_*.json` and the logs beside them. One table a configuration (router and load); with
//! `--csv FILE` the same for a sweep of bounds and for the textbook detectors; with `--svg FILE` that
//! frontier as a picture.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)]

#[path = "detect_eval/picture.rs"]
mod picture;
#[path = "detect_eval/run.rs"]
mod run;
#[path = "detect_eval/score.rs"]
mod score;
#[path = "detect_eval/textbook.rs"]
mod textbook;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use run::{Bounds, Log, Rule};
use score::{Label, Scores};

fn main() -> Result<()> {
    let (mut dirs, mut csv, mut svg) = (Vec::new(), None, None);
    let (mut bounds, mut verbose) = (Bounds::default(), false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--csv" => csv = Some(args.next().context("--csv needs a file")?),
            "--svg" => svg = Some(args.next().context("--svg needs a file")?),
            "--departure" => bounds.departure = args.next().context("--departure needs a number")?.parse()?,
            "--for" => bounds.hold_s = args.next().context("--for needs seconds")?.parse()?,
            "--verbose" => verbose = true,
            dir => dirs.push(PathBuf::from(dir)),
        }
    }
    let mut configurations: BTreeMap<String, Vec<(Log, Label)>> = BTreeMap::new();
    for dir in &dirs {
        read(dir, &mut configurations)?;
    }
    let mut points = Vec::new();
    for (name, logs) in &configurations {
        let ours = Scores::of(logs, &Rule::Shipped(bounds), verbose);
        println!("{name}\n{ours}\n");
        if csv.is_some() || svg.is_some() {
            points.extend(Rule::sweep().iter().map(|rule| Scores::of(logs, rule, false).point(name, rule)));
        }
    }
    if let Some(path) = csv {
        fs::write(path, picture::csv(&points))?;
    }
    if let Some(path) = svg {
        fs::write(path, picture::svg(&points))?;
    }
    Ok(())
}

fn read(dir: &Path, into: &mut BTreeMap<String, Vec<(Log, Label)>>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with("labels_") || !name.ends_with(".json") {
            continue;
        }
        let labels: Vec<Label> = serde_json::from_str(&fs::read_to_string(&path)?)
            .with_context(|| format!("{} is not what simload.py gen writes", path.display()))?;
        for label in labels {
            let log = Log::parse(&fs::read_to_string(dir.join(&label.file))?);
            into.entry(format!("{}-{}", label.router, label.load)).or_default().push((log, label));
        }
    }
    Ok(())
}
