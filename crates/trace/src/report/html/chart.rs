//! The signal of each rank around the onset, with the onset, the firing and the window marked.
//! The lines are an SVG that stretches with the page; text stays outside of it, so that it keeps its
//! size on any screen.

use std::io::{self, Write};

use super::escaped;
use crate::time::Time;

/// The history of a signal around an incident.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// The name of the signal: `load`.
    pub signal: String,
    /// The estimated onset.
    pub onset: Time,
    /// When the rule fired.
    pub fired_at: Time,
    /// Of a further capture of the incident: when it had become so much worse that it was captured
    /// again. It is shown in place of the onset.
    pub worse_at: Option<Time>,
    /// When the profile window was open.
    pub window: Option<(Time, Time)>,
    /// The log line or the sample that first shows it, from the onset on.
    pub shown_by: Option<String>,
    /// The ranks' values.
    pub series: Vec<Series>,
}

/// One rank's values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// `DP2`.
    pub label: String,
    /// Whether this is the rank that the rule found.
    pub blamed: bool,
    /// Ordered by time.
    pub points: Vec<(Time, f64)>,
}

/// The most points of a line; of more, every n-th is drawn.
const MAX_POINTS: usize = 400;
/// Spaces between the horizontal lines.
const LINES: u8 = 4;
/// The most lines.
const MAX_SERIES: usize = 16;

struct Frame {
    from: Time,
    span_s: f64,
    top: f64,
}

impl Frame {
    /// Percent of the width.
    fn x(&self, t: Time) -> f64 {
        (t.signed_s_since(self.from) / self.span_s * 100.0).clamp(0.0, 100.0)
    }

    /// Percent of the height, from the top.
    fn y(&self, value: f64) -> f64 {
        100.0 - value / self.top * 100.0
    }
}

/// Writes the section; nothing when there are no points.
///
/// # Errors
/// When `out` fails.
pub fn write(out: &mut impl Write, h: &History) -> io::Result<()> {
    let times = || h.series.iter().flat_map(|s| s.points.iter().map(|p| p.0));
    let (Some(first), Some(last)) = (times().min(), times().max()) else { return Ok(()) };
    let (zero, fired_at) = h.worse_at.map_or((h.onset, h.fired_at), |at| (at, at));
    let end = h.window.map_or(last, |w| last.max(w.1)).max(fired_at);
    let from = first.min(zero);
    let top = h.series.iter().flat_map(|s| s.points.iter().map(|p| p.1)).fold(0.0, f64::max);
    let frame = Frame { from, span_s: end.signed_s_since(from).max(1e-3), top: round_above(top) };
    let window = if h.window.is_some() { ", the shaded band the profile window" } else { "" };
    let marked = match h.worse_at {
        Some(_) => "when it had got so much worse that it was captured again; dashed: that time",
        None => "the onset; dashed: the onset and the firing of the rule",
    };
    write!(
        out,
        "<section><h2>Signal per rank: {}</h2><p>Seconds relative to {marked}{window}.</p><div class=\"plot\"><div class=\"ys\">",
        escaped(&h.signal)
    )?;
    for line in 0..=LINES {
        write!(out, "<span>{}</span>", figure(frame.top * f64::from(LINES - line) / f64::from(LINES)))?;
    }
    out.write_all(b"</div>")?;
    marks(out, h, &frame)?;
    lines(out, h, &frame)?;
    let relative = |t: Time| t.signed_s_since(zero);
    write!(
        out,
        "</div><div class=\"axis\"><span>{:+.0} s</span><span>{:+.0} s</span></div><div class=\"legend\">",
        relative(frame.from),
        relative(end)
    )?;
    for (i, s) in h.series.iter().take(MAX_SERIES).enumerate() {
        let strong = if s.blamed { ("<b>", "</b>") } else { ("", "") };
        write!(
            out,
            "<span><i style=\"background:{}\"></i>{}{}{}</span>",
            colour(i, s),
            strong.0,
            escaped(&s.label),
            strong.1
        )?;
    }
    out.write_all(b"</div>")?;
    if let Some(shown) = &h.shown_by {
        write!(out, "<p>First shown by: <code>{}</code></p>", escaped(shown))?;
    }
    out.write_all(b"</section>\n")
}

fn marks(out: &mut impl Write, h: &History, frame: &Frame) -> io::Result<()> {
    if let Some((open, close)) = h.window {
        let (left, right) = (frame.x(open), frame.x(close));
        write!(
            out,
            "<div class=\"band\" style=\"left:{left:.2}%;width:{:.2}%\" title=\"profile window\"></div>",
            right - left
        )?;
    }
    if let Some(at) = h.worse_at.map(|at| frame.x(at)) {
        return write!(out, "<div class=\"mark\" style=\"left:{at:.2}%\"><b{}>worse</b></div>", inside(at));
    }
    let (onset, fired) = (frame.x(h.onset), frame.x(h.fired_at));
    write!(out, "<div class=\"mark\" style=\"left:{onset:.2}%\"><b{}>onset</b></div>", inside(onset))?;
    let delay = h.fired_at.signed_s_since(h.onset);
    write!(
        out,
        "<div class=\"mark fired\" style=\"left:{fired:.2}%\"><b{}>fired {delay:+.1} s</b></div>",
        inside(fired)
    )
}

/// Keeps a mark's word inside of the plot.
fn inside(at: f64) -> &'static str {
    match at {
        at if at < 14.0 => " style=\"transform:none\"",
        at if at > 86.0 => " style=\"transform:translateX(-100%)\"",
        _ => "",
    }
}

fn lines(out: &mut impl Write, h: &History, frame: &Frame) -> io::Result<()> {
    out.write_all(b"<svg viewBox=\"0 0 100 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"signal per rank\">")?;
    for y in (0..=LINES).map(|line| 100 / LINES * line) {
        write!(out, "<line x1=\"0\" x2=\"100\" y1=\"{y}\" y2=\"{y}\"/>")?;
    }
    for (i, s) in h.series.iter().take(MAX_SERIES).enumerate() {
        let class = if s.blamed { " class=\"culprit\"" } else { "" };
        write!(out, "<path{class} style=\"stroke:{}\" d=\"", colour(i, s))?;
        let stride = s.points.len().div_ceil(MAX_POINTS).max(1);
        for (n, (t, value)) in s.points.iter().step_by(stride).enumerate() {
            let pen = if n == 0 { 'M' } else { 'L' };
            write!(out, "{pen}{:.2} {:.2}", frame.x(*t), frame.y(*value))?;
        }
        write!(out, "\"><title>{}</title></path>", escaped(&s.label))?;
    }
    out.write_all(b"</svg>")
}

fn colour(i: usize, s: &Series) -> String {
    if s.blamed { "var(--hot)".into() } else { format!("var(--s{})", i % 8) }
}

/// The lowest number that is not below the highest value and of which a quarter is round.
fn round_above(top: f64) -> f64 {
    if top <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(top.log10().floor());
    let steps = [1.0, 1.2, 1.6, 2.0, 2.4, 3.2, 4.0, 6.0, 8.0, 10.0];
    steps.into_iter().map(|n| n * power).find(|n| *n >= top * 0.999).unwrap_or(top)
}

fn figure(value: f64) -> String {
    let text = format!("{value:.2}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_ends_at_a_round_number_at_or_above_what_was_measured() {
        let tops = [0.0, 0.31, 1.0, 7.2, 41.0, 130.0, 2_001.0].map(round_above);
        assert_eq!(tops.map(figure), ["1", "0.32", "1", "8", "60", "160", "2000"]);
        assert_eq!([0.0, 0.4, 12.5, 200.0].map(figure), ["0", "0.4", "12.5", "200"]);
    }
}
