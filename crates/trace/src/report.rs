//! Renderings of a comparison, each to an `impl Write`.

mod csv;
mod html;
pub mod perfetto;
mod terminal;

use std::io::{self, Write};

pub use self::csv::write_csv;
pub use self::html::{Context, History, ReportIncident, Series, write_html};
pub use self::terminal::write_terminal;
use crate::comparison::Comparison;

/// Writes the comparison as indented JSON with a newline at the end, the verdict first.
///
/// # Errors
/// When `out` fails.
pub fn write_json(out: &mut impl Write, comparison: &Comparison) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, comparison).map_err(io::Error::from)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;
    use crate::printable::is_printable;
    use crate::rank::{Rank, RankId};
    use crate::read::kineto;
    use crate::time::Time;
    use crate::{ComparisonInput, Limits, Profiles, RankTrace, RankWindow, compare};

    /// Text that tries to rewrite a terminal, to reverse what is beside it, to be a formula or a tag.
    fn hostile() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "\u{1b}]0;owned\u{7}",
            "\u{1b}[2J",
            "\u{1b}c",
            "\u{9b}31m",
            "\u{90}",
            "\u{202e}",
            "\u{2066}",
            "\u{200b}",
            "\u{feff}",
            "\u{2028}",
            "\r",
            "\n",
            "\t",
            "\0",
            "\u{7f}",
            "=cmd()",
            "@x",
            "-1",
            "+1",
            ",",
            "'",
            "<script>",
            "gemm",
            "größer",
            "核",
        ]);
        (prop::collection::vec(piece, 1..12), prop::sample::select(vec![0_usize, 600]))
            .prop_map(|(pieces, long)| pieces.concat() + &"x".repeat(long))
    }

    /// A trace of ten steps whose kernel is called so, and takes so many microseconds.
    fn trace(name: &str, us: u32) -> RankTrace {
        let mut text = String::from("{\"traceEvents\": [");
        for step in 0..10 {
            let at = step * 1000;
            let separator = if step == 0 { "" } else { "," };
            let _ = write!(
                text,
                "{separator}{{\"ph\": \"X\", \"cat\": \"gpu_user_annotation\", \"name\": \"step[DECODE bs=8]\", \"pid\": 0, \"tid\": 7, \"ts\": {at}, \"dur\": 900}},
                {{\"ph\": \"X\", \"cat\": \"kernel\", \"name\": \"{name}\", \"pid\": 0, \"tid\": 7, \"ts\": {}, \"dur\": {us}, \"args\": {{\"stream\": 7}}}},
                {{\"ph\": \"X\", \"cat\": \"kernel\", \"name\": \"void gemm(float*)\", \"pid\": 0, \"tid\": 7, \"ts\": {}, \"dur\": 100, \"args\": {{\"stream\": 7}}}}",
                at + 1,
                at + 700,
            );
        }
        text += "]}";
        let mut rows = RankTrace::default();
        kineto::read(text.as_bytes(), Limits::default(), &mut rows).expect("it is a trace");
        rows
    }

    fn text_of(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).expect("memory");
        String::from_utf8(out).expect("text")
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn nothing_that_a_trace_names_reaches_a_report_raw(name in hostile(), note in hostile(), label in hostile()) {
            // In JSON these two would end the name.
            let kernel = name.replace(['"', '\\'], "");
            let windows = [100_u32, 500].into_iter().zip(0..).map(|(us, dp)| {
                RankWindow::new(RankId::Rank(Rank::dp(dp)), trace(&kernel, us))
            });
            let mut input = ComparisonInput { profiles: Profiles::new(windows.collect()).ranks, ..ComparisonInput::default() };
            input.notes.push(note.clone());
            for profile in &mut input.profiles {
                prop_assert!(!profile.kernels.is_empty(), "the kernels were read");
                profile.notes.push(note.clone());
            }
            let c = compare(&input);
            let series = Series { label: label.clone(), blamed: true, points: vec![(Time::from_nanos(1), 1.0), (Time::from_nanos(2), 2.0)] };
            let history = History { signal: label.clone(), shown_by: Some(label), series: vec![series], ..History::default() };
            let terminal = text_of(|out| write_terminal(out, &c));
            // Colours are our own: ESC [ digits m.
            let mut pieces = terminal.split('\u{1b}');
            let mut plain = pieces.next().unwrap_or_default().to_owned();
            for piece in pieces {
                let end = piece.find('m').expect("a colour ends");
                let is_colour = piece.starts_with('[') && piece[1..end].bytes().all(|b| b.is_ascii_digit() || b == b';');
                prop_assert!(is_colour, "{piece:?}");
                plain += &piece[end + 1..];
            }
            let csv = text_of(|out| write_csv(out, &input.profiles));
            let html = text_of(|out| write_html(out, &c, Context { incident: None, history: Some(&history) }));
            for text in [plain, csv.clone(), html.clone(), text_of(|out| write_json(out, &c))] {
                for line in text.split('\n') {
                    prop_assert!(is_printable(line), "{line:?}");
                }
            }
            prop_assert!(!html.contains("<script>"));
            for line in csv.lines().skip(1) {
                let mut quoted = false;
                let mut fields = vec![String::new()];
                for c in line.chars() {
                    match c {
                        '"' => quoted = !quoted,
                        ',' if !quoted => fields.push(String::new()),
                        c => fields.last_mut().expect("one").push(c),
                    }
                }
                prop_assert!(fields.iter().all(|f| !f.starts_with(['=', '+', '-', '@'])), "{fields:?}");
            }
        }
    }
}
