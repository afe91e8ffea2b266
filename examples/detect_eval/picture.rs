//! The frontier: delay against false alarms, a line for each detector, a panel for each configuration.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::score::{Configuration, Point};

const WIDTH: f64 = 250.0;
const HEIGHT: f64 = 170.0;
const LEFT: f64 = 46.0;
const TOP: f64 = 54.0;
const STEP_X: f64 = 290.0;
const STEP_Y: f64 = 235.0;
/// False alarms an hour at the two ends of the axis; none at all is drawn at the left one.
const FALSE_ALARMS: (f64, f64) = (0.03, 100.0);
const COLOURS: [(&str, &str); 6] = [
    ("skewtrap", "#c1121f"),
    ("static max/mean 5 s", "#1d3557"),
    ("static, both sides", "#457b9d"),
    ("CUSUM of the ratio", "#2a9d8f"),
    ("EWMA per rank", "#8d6a9f"),
    ("Page-Hinkley", "#bc8a3a"),
];

pub fn csv(points: &[Point]) -> String {
    let mut out =
        String::from("configuration,detector,bound,false_alarms_h,sudden_median_s,creeping_median_s\n");
    for p in points {
        let (name, detector) = (&p.configuration, p.detector);
        let _ = writeln!(
            out,
            "{name},{detector},{},{:.3},{:.1},{:.1}",
            p.bound, p.false_alarms_h, p.sudden_s, p.creeping_s
        );
    }
    out
}

pub fn svg(points: &[Point]) -> String {
    let mut panels: BTreeMap<Configuration, Vec<&Point>> = BTreeMap::new();
    for p in points {
        panels.entry(p.configuration).or_default().push(p);
    }
    let (w, h) = (panels.len() as f64 * STEP_X + 20.0, 2.0 * STEP_Y + 90.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (i, (name, points)) in panels.iter().enumerate() {
        let x = LEFT + i as f64 * STEP_X;
        let title = format!("{name}: sticky, hot_prefix, oscillation, drained");
        panel(&mut out, (x, TOP), &title, 40.0, points.iter().map(|p| (*p, p.sudden_s)));
        let title = format!("{name}: slow_rank, drift");
        panel(&mut out, (x, TOP + STEP_Y), &title, 150.0, points.iter().map(|p| (*p, p.creeping_s)));
    }
    for (i, (name, colour)) in COLOURS.iter().enumerate() {
        let x = LEFT + i as f64 * 170.0;
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"14\" width=\"18\" height=\"4\" fill=\"{colour}\"/><text x=\"{}\" y=\"20\">{name}</text>",
            x + 24.0
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{}\">Across: false alarms an hour on healthy load (logarithmic). Up: median delay in seconds, what was never found counting as the largest. Lower left is better.</text>\n</svg>",
        h - 14.0
    );
    out
}

fn panel<'a>(
    out: &mut String,
    (x, y): (f64, f64),
    title: &str,
    slowest_s: f64,
    points: impl Iterator<Item = (&'a Point, f64)>,
) {
    let _ = writeln!(
        out,
        "<text x=\"{x}\" y=\"{}\" font-size=\"10\">{title}</text><rect x=\"{x}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"#999\"/>",
        y - 8.0
    );
    let across = |fa: f64| {
        let (low, high) = FALSE_ALARMS;
        x + WIDTH * (fa.clamp(low, high) / low).ln() / (high / low).ln()
    };
    let up = |s: f64| y + HEIGHT * (1.0 - s.min(slowest_s) / slowest_s);
    for fa in [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0] {
        let colour = if fa == 0.3 { "#888" } else { "#eee" };
        let label = if fa == 0.03 { "0".to_owned() } else { fa.to_string() };
        let _ = writeln!(
            out,
            "<path d=\"M{0} {y}V{1}\" stroke=\"{colour}\"/><text x=\"{0}\" y=\"{2}\" text-anchor=\"middle\" fill=\"#555\">{label}</text>",
            across(fa),
            y + HEIGHT,
            y + HEIGHT + 14.0
        );
    }
    for part in 0..=4 {
        let s = slowest_s * f64::from(part) / 4.0;
        let _ = writeln!(
            out,
            "<path d=\"M{x} {0}H{1}\" stroke=\"#eee\"/><text x=\"{2}\" y=\"{3}\" text-anchor=\"end\" fill=\"#555\">{s}</text>",
            up(s),
            x + WIDTH,
            x - 5.0,
            up(s) + 4.0
        );
    }
    let mut lines: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for (p, delay_s) in points {
        lines.entry(p.detector).or_default().push((across(p.false_alarms_h), up(delay_s)));
    }
    for (name, colour) in COLOURS.iter().rev() {
        let Some(line) = lines.get(name) else { continue };
        let path: Vec<String> = line.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let width = if *name == "skewtrap" { 2.5 } else { 1.2 };
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>",
            path.join(" ")
        );
        for (x, y) in line {
            let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{width}\" fill=\"{colour}\"/>");
        }
    }
}
