//! The comparison on one screen: the verdict and its reasons, the ranks, the families and kernels
//! that differ.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};

use crate::collective::MatchedBy;
use crate::comparison::{Comparison, RankLine};
use crate::kernel::Family;
use crate::printable::printable;
use crate::verdict::{Cause, Confidence, Kind};

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const HOT: Style = AnsiColor::Red.on_default().bold();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const ODD: Style = AnsiColor::Yellow.on_default().bold();

/// The most ranks that are listed.
const MAX_RANKS: usize = 16;
/// The most kernels that are listed.
const MAX_KERNELS: usize = 8;

/// Writes the comparison for a terminal, with ANSI styles; wrap `out` in a writer that strips them
/// (the crate `anstream` has one) where it may be a pipe.
///
/// # Errors
/// When `out` fails.
pub fn write_terminal(out: &mut impl Write, c: &Comparison) -> io::Result<()> {
    headline(out, c)?;
    ranks(out, c)?;
    kernels(out, c)?;
    collectives(out, c)?;
    notes(out, c)
}

fn headline(out: &mut impl Write, c: &Comparison) -> io::Result<()> {
    let v = &c.verdict;
    let style = match v.kind {
        Kind::NoFinding => GOOD,
        Kind::InsufficientEvidence => ODD,
        _ => HOT,
    };
    let who = v.rank.map(|r| format!(": {r}")).unwrap_or_default();
    let sure = match v.kind {
        Kind::InsufficientEvidence => String::new(),
        _ => format!("  {DIM}confidence {}{DIM:#}", v.confidence.name()),
    };
    writeln!(out, "{style}{}{who}{style:#}{sure}", v.kind.title())?;
    writeln!(out, "{}", printable(&v.sentence, usize::MAX))?;
    for point in v.points() {
        writeln!(out, "  - {}", printable(&point, usize::MAX))?;
    }
    match v.confirms {
        Some(true) => writeln!(out, "  {GOOD}This confirms what fired the rule.{GOOD:#}")?,
        Some(false) => writeln!(out, "  {ODD}This refutes what fired the rule.{ODD:#}")?,
        None => {}
    }
    if v.confidence == Confidence::High && v.kind == Kind::NoFinding && !c.has_baseline() {
        writeln!(out, "  {DIM}\"All slow\" is not excluded: that takes a --baseline.{DIM:#}")?;
    }
    writeln!(out)
}

fn ranks(out: &mut impl Write, c: &Comparison) -> io::Result<()> {
    let batches = c.ranks.iter().any(|r| r.requests_mean.is_some());
    let waits = c.collectives.as_ref();
    let widest = c.ranks.iter().map(|r| r.rank.to_string().len()).max().unwrap_or(4).max(4);
    writeln!(out, "{DIM}milliseconds per step{DIM:#}")?;
    write!(
        out,
        "{BOLD}{:widest$}  {:>6} {:>9} {:>9} {:>9}",
        "rank", "steps", "work/step", "gap", "host gap"
    )?;
    if batches {
        write!(out, " {:>8} {:>8}", "requests", "prefill")?;
    }
    if c.has_baseline() {
        write!(out, " {:>9}", "/baseline")?;
    }
    if waits.is_some() {
        write!(out, " {:>10} {:>6}", "wait/step", "last")?;
    }
    writeln!(out, "  work{BOLD:#}")?;
    for r in c.listed(MAX_RANKS) {
        let mark = if Some(r.rank) == c.verdict.rank { HOT } else { Style::new() };
        write!(
            out,
            "{mark}{:widest$}  {:>6} {:>9.3} {:>9} {:>9.2}{mark:#}",
            r.rank.to_string(),
            r.steps,
            r.work_ms_per_step,
            r.gap_ms_per_step.map_or("-".into(), |gap| format!("{gap:+.3}")),
            r.host_gap_ms_per_step
        )?;
        if batches {
            let requests = r.requests_mean.map_or("-".into(), |n| format!("{n:.1}"));
            write!(out, " {requests:>8} {:>7.0}%", r.extend_share * 100.0)?;
        }
        if c.has_baseline() {
            let times = r.work_over_baseline.map_or("-".into(), |n| format!("{n:.2}x"));
            write!(out, " {times:>9}")?;
        }
        match waits.map(|m| m.ranks.iter().find(|w| w.rank == r.rank)) {
            Some(Some(w)) => write!(out, " {:>10.3} {:>5.0}%", w.wait_ms_per_step, w.last_share * 100.0)?,
            Some(None) => write!(out, " {:>10} {:>6}", "-", "-")?,
            None => {}
        }
        writeln!(out, "{}", bar(r, c))?;
    }
    if c.ranks.len() > MAX_RANKS {
        writeln!(out, "{DIM}and {} more ranks (--format json, --csv){DIM:#}", c.ranks.len() - MAX_RANKS)?;
    }
    legend(out, c, batches)
}

/// What the columns that are shown mean.
fn legend(out: &mut impl Write, c: &Comparison, batches: bool) -> io::Result<()> {
    let of_batches =
        if batches { "; requests: mean of its batches; prefill: share of its steps" } else { "" };
    writeln!(
        out,
        "{DIM}work/step: its GPU is busy, communication left out (the bars); gap: that minus its peers' median;\n\
         host gap: no kernel runs{of_batches}"
    )?;
    if c.has_baseline() {
        writeln!(out, "/baseline: work/step over its own in the baseline")?;
    }
    if c.collectives.is_some() {
        writeln!(
            out,
            "wait/step: it waits for others in collectives; last: share of these to which it came last"
        )?;
    }
    write!(out, "{DIM:#}")
}

fn bar(r: &RankLine, c: &Comparison) -> String {
    let most = c.ranks.iter().map(|r| r.work_ms_per_step).fold(0.0, f64::max);
    let cells = if most > 0.0 { (r.work_ms_per_step / most * 20.0).round() as usize } else { 0 };
    format!("  {DIM}{}{DIM:#}", "▇".repeat(cells))
}

fn kernels(out: &mut impl Write, c: &Comparison) -> io::Result<()> {
    let v = &c.verdict;
    // Families of a gap that is no finding are no causes.
    if !v.causes.is_empty() && v.rank.is_some() {
        writeln!(out, "\n{BOLD}{:<14} {:>9} {:>7}  most in{BOLD:#}", "family", "gap/step", "share")?;
        for cause in &v.causes {
            writeln!(
                out,
                "{:<14} {:>+9.3} {:>6.0}%  {}{}",
                cause.family.name(),
                cause.gap_ms_per_step,
                cause.share * 100.0,
                clipped(&cause.kernel, 56),
                part_of(cause)
            )?;
        }
    }
    let lines: Vec<_> = c
        .kernels
        .iter()
        .filter(|k| {
            k.family != Family::Communication && k.gap_ms_per_step > 0.01 * v.lost_ms_per_step.unwrap_or(0.0)
        })
        .take(MAX_KERNELS)
        .collect();
    if lines.is_empty() || v.rank.is_none() {
        return Ok(());
    }
    let at = c.ranks.iter().position(|r| Some(r.rank) == v.rank);
    let Some(at) = at else { return Ok(()) };
    let culprit = c.ranks[at].rank;
    writeln!(out, "\n{DIM}milliseconds per step; here: on {culprit}; gap: beyond its peers' median{DIM:#}")?;
    writeln!(out, "{BOLD}{:<58} {:>9} {:>9}{BOLD:#}", "kernel", "here", "gap")?;
    for k in lines {
        let (here, gap) = (k.ms_per_step[at], k.gap_ms_per_step);
        writeln!(out, "{:<58} {here:>9.3} {gap:>+9.3}", clipped(&k.kernel, 58))?;
    }
    Ok(())
}

/// The kernel's own share of the gap, where it is below that of its family. It can be above: where the
/// peers run the same product with other tile sizes, only one of the kernels shows on the culprit.
fn part_of(cause: &Cause) -> String {
    if cause.kernel_share > cause.share {
        String::new()
    } else {
        format!(" ({:.0} %)", cause.kernel_share * 100.0)
    }
}

fn clipped(name: &str, width: usize) -> String {
    let name = &*printable(name, usize::MAX);
    if name.chars().count() <= width {
        return name.to_owned();
    }
    let head: String = name.chars().take(width - 1).collect();
    format!("{head}…")
}

fn collectives(out: &mut impl Write, c: &Comparison) -> io::Result<()> {
    let Some(m) = &c.collectives else { return Ok(()) };
    let residual = m.ranks.iter().map(|r| r.clock.clock_residual_us).fold(0.0, f64::max);
    let offset = m.ranks.iter().map(|r| r.clock.clock_offset_us.abs()).fold(0.0, f64::max);
    writeln!(
        out,
        "\n{DIM}{} collectives matched by {}; clocks differ by up to {offset:.0} us, known to {residual:.1} us{DIM:#}",
        m.count,
        match m.by {
            MatchedBy::Sequence => "their sequence numbers",
            MatchedBy::Shift => "the rhythm of their ends",
        }
    )
}

fn notes(out: &mut impl Write, c: &Comparison) -> io::Result<()> {
    for line in c.remarks() {
        writeln!(out, "{DIM}note: {}{DIM:#}", printable(&line, usize::MAX))?;
    }
    Ok(())
}
