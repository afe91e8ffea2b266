//! The comparison as one self-contained HTML file: no script, no request, light and dark, readable
//! on a phone. Bars are plain boxes; the chart of the signal is one inline SVG.

mod chart;
mod incident;

use std::io::{self, Write};

use crate::comparison::{Comparison, RankLine};
use crate::kernel::Family;
use crate::ms::Ms;
use crate::printable::printable;
use crate::verdict::{Kind, Place, Verdict};

pub use chart::{History, Series};
pub use incident::ReportIncident;

/// What is known beside the traces.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// The incident in which they were captured.
    pub incident: Option<&'a ReportIncident>,
    /// The signal around the onset.
    pub history: Option<&'a History>,
}

/// The most ranks that are shown.
const MAX_RANKS: usize = 64;

/// Writes the comparison as an HTML page.
///
/// # Errors
/// When `out` fails.
pub fn write_html(out: &mut impl Write, c: &Comparison, context: Context<'_>) -> io::Result<()> {
    let title = match c.verdict.rank {
        Some(who) => format!("{who}: {}", c.verdict.kind.title()),
        None => c.verdict.kind.title().to_owned(),
    };
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\
         <link rel=\"icon\" href=\"data:,\"><title>{} - skewtrap</title>\n<style>{}</style></head><body><main>\n",
        escaped(&title),
        include_str!("html/page.css")
    )?;
    if let Some(incident) = context.incident {
        incident::write(out, incident)?;
    }
    header(out, c)?;
    if let Some(history) = context.history {
        chart::write(out, history)?;
    }
    ranks(out, c)?;
    families(out, c)?;
    kernels(out, c)?;
    waits(out, c)?;
    footer(out, c)?;
    out.write_all(b"</main></body></html>\n")
}

/// Text made safe to show, and escaped for an element or a quoted attribute.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in printable(text, usize::MAX).chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

fn header(out: &mut impl Write, c: &Comparison) -> io::Result<()> {
    let v = &c.verdict;
    let style = match v.kind {
        Kind::NoFinding => "good",
        Kind::InsufficientEvidence => "odd",
        _ => "hot",
    };
    let who = v.rank.map(|r| format!("{r}: ")).unwrap_or_default();
    let sure = match v.kind {
        Kind::InsufficientEvidence => String::new(),
        _ => format!("<small>confidence {}</small>", v.confidence.name()),
    };
    write!(
        out,
        "<header><h1 class=\"kind\"><span class=\"{style}\">{}{}</span>{sure}</h1><p>{}</p>",
        escaped(&who),
        v.kind.title(),
        escaped(&v.sentence)
    )?;
    let mut reasons = v.points();
    reasons.extend(match v.confirms {
        Some(true) => Some("this confirms what fired the rule".to_owned()),
        Some(false) => Some("this refutes what fired the rule".to_owned()),
        None => None,
    });
    if !reasons.is_empty() {
        out.write_all(b"<ul>")?;
        for reason in &reasons {
            write!(out, "<li>{}</li>", escaped(reason))?;
        }
        out.write_all(b"</ul>")?;
    }
    out.write_all(b"<div class=\"tiles\">")?;
    if v.rank.is_some() {
        tiles_of_culprit(out, v)?;
    }
    tile(out, &c.ranks.len().to_string(), "ranks compared")?;
    out.write_all(b"</div></header>\n")
}

/// What the rank that the verdict names loses, and where. Where the evidence is insufficient there is none.
fn tiles_of_culprit(out: &mut impl Write, v: &Verdict) -> io::Result<()> {
    if let (Some(lost), Some(share)) = (v.lost_ms_per_step, v.lost_share) {
        let what = match v.by {
            Some(Place::Host) => "host time per step beyond what its work accounts for",
            _ => "GPU work per step beyond its peers",
        };
        tile(out, &format!("+{}", Ms(lost)), &format!("{what} (+{:.0} %)", share * 100.0))?;
    }
    if let Some(step) = v.step {
        tile(
            out,
            &Ms(step.wall_ms).to_string(),
            &format!("for a step; its peers take {}", Ms(step.peers_wall_ms)),
        )?;
    }
    if let Some(cause) = v.causes.first() {
        let what = format!("of that gap is {}", cause.family.name());
        tile(out, &format!("{:.0} %", cause.share.min(1.0) * 100.0), &what)?;
    }
    if let Some(host) = v.host_gap_ms_per_step {
        tile(out, &Ms(host).to_string(), "per step without any kernel on it (host time)")?;
    }
    Ok(())
}

fn tile(out: &mut impl Write, number: &str, what: &str) -> io::Result<()> {
    write!(out, "<div class=\"tile\"><b>{}</b><span>{}</span></div>", escaped(number), escaped(what))
}

/// A cell that bears the name of its column: on a phone each row is a card, and nothing lies beside it. The
/// roles are written out, since no browser takes cards for a table.
fn cell(out: &mut impl Write, column: &str, text: &str) -> io::Result<()> {
    write!(out, "<td role=\"cell\" data-name=\"{}\">{}</td>", escaped(column), escaped(text))
}

fn ranks(out: &mut impl Write, c: &Comparison) -> io::Result<()> {
    out.write_all(
        b"<section><h2>Ranks</h2><p>Milliseconds per step. Work is GPU time as a union of intervals, without \
          communication; the gap is work beyond the median of the other ranks.</p><div class=\"scroll\"><table role=\"table\"><tr role=\"row\" class=\"head\">\
          <th role=\"columnheader\">rank</th><th role=\"columnheader\">gap</th><th role=\"columnheader\">work</th><th role=\"columnheader\">busy</th><th role=\"columnheader\">host gap</th><th role=\"columnheader\">steps</th>",
    )?;
    let batches = c.ranks.iter().any(|r| r.requests_mean.is_some());
    if batches {
        out.write_all(b"<th role=\"columnheader\">requests</th><th role=\"columnheader\">prefill</th>")?;
    }
    if c.has_baseline() {
        out.write_all(b"<th role=\"columnheader\">work / baseline</th>")?;
    }
    out.write_all(b"</tr>")?;
    for r in c.listed(MAX_RANKS) {
        let class = if Some(r.rank) == c.verdict.rank { " class=\"culprit\"" } else { "" };
        let gap = r.gap_ms_per_step.map_or("-".into(), |g| format!("{g:+.3}"));
        write!(
            out,
            "<tr{class} role=\"row\"><th scope=\"row\" role=\"rowheader\">{}</th>",
            escaped(&r.rank.to_string())
        )?;
        cell(out, "gap", &gap)?;
        cell(out, "work", &format!("{:.3}", r.work_ms_per_step))?;
        cell(out, "busy", &format!("{:.3}", r.busy_ms_per_step))?;
        cell(out, "host gap", &format!("{:.2}", r.host_gap_ms_per_step))?;
        cell(out, "steps", &r.steps.to_string())?;
        if batches {
            let requests = r.requests_mean.map_or("-".into(), |n| format!("{n:.1}"));
            cell(out, "requests", &requests)?;
            cell(out, "prefill", &format!("{:.0} %", r.extend_share * 100.0))?;
        }
        if c.has_baseline() {
            let times = r.work_over_baseline.map_or("-".into(), |n| format!("{n:.2}"));
            cell(out, "work / baseline", &times)?;
        }
        out.write_all(b"</tr>")?;
    }
    out.write_all(b"</table></div>")?;
    if c.ranks.len() > MAX_RANKS {
        write!(out, "<p>and {} more ranks, which have less work</p>", c.ranks.len() - MAX_RANKS)?;
    }
    out.write_all(b"</section>\n")
}

/// What takes most of a rank's kernel time, beside its peers: of the rank of the verdict, else of the one
/// with most.
fn dominant(c: &Comparison) -> Option<String> {
    let total = |r: &RankLine| r.families_ms_per_step.values().sum::<f64>();
    let by_total = |a: &&RankLine, b: &&RankLine| total(a).total_cmp(&total(b));
    let blamed = c.ranks.iter().find(|r| Some(r.rank) == c.verdict.rank);
    let rank = blamed.or_else(|| c.ranks.iter().max_by(by_total)).filter(|r| total(r) > 0.0)?;
    let (family, ms) = rank.families_ms_per_step.iter().max_by(|a, b| a.1.total_cmp(b.1))?;
    let share = ms / total(rank) * 100.0;
    let of_rank = format!(
        "{} spends {share:.0} % of its kernel time in {}: {} a step",
        rank.rank,
        family.name().replace('_', " "),
        Ms(*ms)
    );
    let mut peers: Vec<f64> = c
        .ranks
        .iter()
        .filter(|r| r.rank != rank.rank)
        .map(|r| r.families_ms_per_step.get(family).copied().unwrap_or(0.0))
        .collect();
    peers.sort_by(f64::total_cmp);
    let Some(middle) = peers.get(peers.len() / 2) else { return Some(format!("{of_rank}.")) };
    Some(format!("{of_rank}, the median of its peers {}.", Ms(*middle)))
}

fn families(out: &mut impl Write, c: &Comparison) -> io::Result<()> {
    let total = |r: &RankLine| r.families_ms_per_step.values().sum::<f64>();
    let most = c.ranks.iter().map(total).fold(0.0, f64::max);
    if most <= 0.0 {
        return Ok(());
    }
    let dominant = dominant(c).map(|sentence| format!("<p class=\"said\">{}</p>", escaped(&sentence)));
    write!(
        out,
        "<section><h2>Kernel families</h2>{}<p>Kernel time per step, every rank on one scale.</p><div class=\"rows\">",
        dominant.unwrap_or_default()
    )?;
    for r in c.listed(MAX_RANKS) {
        let class = if Some(r.rank) == c.verdict.rank { " culprit" } else { "" };
        write!(
            out,
            "<div class=\"row{class}\"><span>{}</span><div class=\"bar\">",
            escaped(&r.rank.to_string())
        )?;
        for family in Family::ALL {
            let ms = r.families_ms_per_step.get(&family).copied().unwrap_or(0.0);
            if ms > 0.0 {
                let (width, name) = (ms / most * 100.0, family.name());
                write!(
                    out,
                    "<i style=\"width:{width:.2}%;background:var(--{name})\" title=\"{name}: {}\"></i>",
                    Ms(ms)
                )?;
            }
        }
        write!(out, "</div><span class=\"v\">{}</span></div>", Ms(total(r)))?;
    }
    out.write_all(b"</div><div class=\"legend\">")?;
    for family in Family::ALL {
        if c.ranks.iter().any(|r| r.families_ms_per_step.get(&family).is_some_and(|ms| *ms > 0.0)) {
            let name = family.name();
            write!(out, "<span><i style=\"background:var(--{name})\"></i>{}</span>", name.replace('_', " "))?;
        }
    }
    out.write_all(b"</div></section>\n")
}

fn kernels(out: &mut impl Write, c: &Comparison) -> io::Result<()> {
    let lines: Vec<_> = c.kernels.iter().filter(|k| k.family != Family::Communication).take(12).collect();
    if lines.is_empty() {
        return Ok(());
    }
    let who = c.verdict.rank.map_or("the rank with most of each".to_owned(), |r| r.to_string());
    write!(
        out,
        "<section><h2>Kernels that differ most</h2><p>Milliseconds per step; the gap is of {} against the median of the \
         others. A GEMM of another tile size on another rank is the batch size at work: compare families.</p>\
         <div class=\"scroll\"><table role=\"table\"><tr role=\"row\" class=\"head\"><th role=\"columnheader\">kernel</th><th role=\"columnheader\">gap</th>",
        escaped(&who)
    )?;
    // The culprit first: a narrow screen shows the first columns.
    let mut shown: Vec<usize> = (0..c.ranks.len()).collect();
    shown.sort_by_key(|&i| Some(c.ranks[i].rank) != c.verdict.rank);
    shown.truncate(8);
    for &i in &shown {
        write!(out, "<th role=\"columnheader\">{}</th>", escaped(&c.ranks[i].rank.to_string()))?;
    }
    out.write_all(b"<th role=\"columnheader\">family</th></tr>")?;
    for k in lines {
        write!(
            out,
            "<tr role=\"row\"><th scope=\"row\" role=\"rowheader\" class=\"name\">{}</th>",
            escaped(&k.kernel)
        )?;
        cell(out, "gap", &format!("{:+.3}", k.gap_ms_per_step))?;
        for &i in &shown {
            cell(out, &c.ranks[i].rank.to_string(), &format!("{:.3}", k.ms_per_step[i]))?;
        }
        cell(out, "family", k.family.name())?;
        out.write_all(b"</tr>")?;
    }
    out.write_all(b"</table></div></section>\n")
}

fn waits(out: &mut impl Write, c: &Comparison) -> io::Result<()> {
    let Some(m) = &c.collectives else { return Ok(()) };
    let most = m.ranks.iter().map(|r| r.wait_ms_per_step).fold(1e-9, f64::max);
    let residual = m.ranks.iter().map(|r| r.clock.clock_residual_us).fold(0.0, f64::max);
    write!(
        out,
        "<section><h2>Waiting in collectives</h2><p>{} collectives matched on all ranks. Each ends together everywhere: what a \
         rank spends in it beyond the last arriver is waiting. The rank that waits least holds the others up. Clocks are \
         known to {residual:.1} us.</p><div class=\"rows\">",
        m.count
    )?;
    for r in &m.ranks {
        let class = if Some(r.rank) == c.verdict.rank { " culprit" } else { "" };
        write!(
            out,
            "<div class=\"row{class}\"><span>{}</span><div class=\"bar\"><i style=\"width:{:.2}%;background:var(--communication)\"></i></div>\
             <span class=\"v\">{} · last {:.0} %</span></div>",
            escaped(&r.rank.to_string()),
            r.wait_ms_per_step / most * 100.0,
            Ms(r.wait_ms_per_step),
            r.last_share * 100.0
        )?;
    }
    out.write_all(b"</div></section>\n")
}

fn footer(out: &mut impl Write, c: &Comparison) -> io::Result<()> {
    let notes = c.remarks();
    out.write_all(b"<footer>")?;
    if !notes.is_empty() {
        out.write_all(b"<ul>")?;
        for note in &notes {
            write!(out, "<li>{}</li>", escaped(note))?;
        }
        out.write_all(b"</ul>")?;
    }
    write!(out, "Made by skewtrap {}.</footer>", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// What stands behind each `before` in a text, up to the first sign that no name of a class has.
    fn names<'t>(text: &'t str, before: &str, signs: &[char]) -> BTreeSet<&'t str> {
        let behind = text.split(before).skip(1);
        let lists = behind.map(|rest| rest.split(|c: char| !(c.is_ascii_alphabetic() || signs.contains(&c))));
        lists.filter_map(|mut parts| parts.next()).flat_map(str::split_whitespace).collect()
    }

    #[test]
    fn every_class_of_the_page_has_a_style() {
        let styled = names(include_str!("html/page.css"), ".", &['_', '-']);
        for source in
            [include_str!("html.rs"), include_str!("html/chart.rs"), include_str!("html/incident.rs")]
        {
            let bare: Vec<_> = names(source, "class=\\\"", &[' ', '-'])
                .into_iter()
                .filter(|c| !styled.contains(c))
                .collect();
            assert_eq!(bare, [""; 0], "the style sheet does not know them");
        }
    }
}
