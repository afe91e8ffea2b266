//! How early, how rightly and how wrongly the shipped detection fires, on logs with known truth.
//!
//! `cargo run --release --features detect_eval --example detect_eval -- DIR...` reads what
//! `simload.py gen DIR ...` wrote: `labels_*.json` and the logs beside them, and replays each through the
//! whole core with the shipped rule. One table over all configurations (router and load), and one of the
//! static detector on the same logs, calibrated on them; `--verbose` prints every run; `--bound N` tries
//! another bound of `departure`. With `--csv FILE` a sweep of bounds and the textbook detectors as numbers;
//! with `--svg FILE` that frontier as a picture.

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
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result};
use run::{Detector, Log};
use score::{Configuration, Label, Run, Scores};

/// What the shipped rule may give, and so what others are calibrated to.
const MOST_FALSE_ALARMS_H: f64 = 0.3;

fn main() -> Result<()> {
    let (mut dirs, mut csv, mut svg) = (Vec::new(), None, None);
    let (mut bound, mut verbose) = (None, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--csv" => csv = Some(args.next().context("--csv needs a file")?),
            "--svg" => svg = Some(args.next().context("--svg needs a file")?),
            "--bound" => bound = Some(args.next().context("--bound needs a number")?.parse()?),
            "--verbose" => verbose = true,
            dir => dirs.push(PathBuf::from(dir)),
        }
    }
    let mut detectors = vec![Detector::Shipped(bound)];
    let to_calibrate = 1..=Detector::to_calibrate().len();
    detectors.extend(Detector::to_calibrate());
    if csv.is_some() || svg.is_some() {
        detectors.extend(Detector::sweep());
    }
    let labels: Vec<Label> =
        dirs.iter().map(|d| labels_in(d)).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    let mut scores: Vec<BTreeMap<Configuration, Scores>> =
        detectors.iter().map(|_| BTreeMap::new()).collect();
    for (label, runs) in labels.iter().zip(run_all(&labels, &detectors)?) {
        for (of_detector, run) in scores.iter_mut().zip(&runs) {
            of_detector.entry(label.configuration()).or_default().add(label, run);
        }
        if verbose {
            score::print_run(label, &runs[0]);
        }
    }
    print!("{}", score::table(&scores[0]));
    println!(
        "\nThe static detector, max/mean for 5 s, with the least bound that gives {MOST_FALSE_ALARMS_H} false alarms an hour:\n"
    );
    let of_bounds: Vec<_> =
        detectors[to_calibrate.clone()].iter().zip(&scores[to_calibrate.clone()]).collect();
    print!("{}", score::table(&score::calibrated(&of_bounds, MOST_FALSE_ALARMS_H)));
    let swept = to_calibrate.end() + 1..;
    let points: Vec<_> = detectors[swept.clone()]
        .iter()
        .zip(&scores[swept])
        .flat_map(|(d, of)| of.iter().map(move |(of, s)| s.point(*of, d)))
        .collect();
    if let Some(path) = csv {
        fs::write(path, picture::csv(&points))?;
    }
    if let Some(path) = svg {
        fs::write(path, picture::svg(&points))?;
    }
    Ok(())
}

/// Every run through every detector, on all cores; the results in the order of the labels.
fn run_all(labels: &[Label], detectors: &[Detector]) -> Result<Vec<Vec<Run>>> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, Vec<Run>)>> {
        let mut done = Vec::new();
        while let Some((i, label)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, labels.get(i)?)))
        {
            let log = Log::read(&label.path)?;
            let span = log.span();
            done.push((i, detectors.iter().map(|d| Run { span, firings: log.firings(d) }).collect()));
        }
        Ok(done)
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut done = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|w| w.join().expect("no worker panics")).collect::<Result<Vec<_>>>()
    })?
    .concat();
    done.sort_by_key(|(i, _)| *i);
    Ok(done.into_iter().map(|(_, runs)| runs).collect())
}

fn labels_in(dir: &Path) -> Result<Vec<Label>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with("labels_") || !name.ends_with(".json") {
            continue;
        }
        let labels: Vec<Label> = serde_json::from_str(&fs::read_to_string(&path)?)
            .with_context(|| format!("{} is not what simload.py gen writes", path.display()))?;
        all.extend(labels.into_iter().map(|l| Label { path: dir.join(&l.file), ..l }));
    }
    Ok(all)
}
