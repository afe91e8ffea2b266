//! In which incident the traces were captured: the lines above the verdict.

use std::io::{self, Write};

use super::escaped;
use crate::time::Time;

/// The incident of a capture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReportIncident {
    /// Its id.
    pub incident: String,
    /// The configured name of the server, and its address where it is known.
    pub server: String,
    /// The rule that fired.
    pub rule: String,
    /// The rule's own sentence.
    pub about: Option<String>,
    /// The onset.
    pub began: Time,
    /// How sure the onset is, in seconds.
    pub began_error_s: f64,
    /// When the rule fired.
    pub fired: Time,
    /// When the window was opened.
    pub window: Option<Time>,
    /// What else is known of it, a name and a sentence each: its cause, what the window cost.
    pub facts: Vec<(&'static str, String)>,
    /// The words of further files, and where they lie relative to the report.
    pub links: Vec<(String, String)>,
}

/// Writes the lines.
///
/// # Errors
/// When `out` fails.
pub fn write(out: &mut impl Write, o: &ReportIncident) -> io::Result<()> {
    let about = o.about.as_ref().map(|a| format!(": {}", escaped(a))).unwrap_or_default();
    write!(
        out,
        "<dl class=\"incident\"><div><dt>server</dt><dd>{}</dd></div><div><dt>rule</dt><dd><b>{}</b>{about}</dd></div>\
         <div><dt>incident</dt><dd>{}</dd></div><div><dt>began</dt><dd>{} \u{b1} {:.1} s, fired {:.1} s later",
        escaped(&o.server),
        escaped(&o.rule),
        escaped(&o.incident),
        to_the_second(o.began),
        o.began_error_s,
        o.fired.signed_s_since(o.began),
    )?;
    if let Some(window) = o.window {
        write!(out, "; the window opened {:.1} s after that", window.signed_s_since(o.fired))?;
    }
    out.write_all(b"</dd></div>")?;
    for (name, sentence) in &o.facts {
        write!(out, "<div><dt>{name}</dt><dd>{}</dd></div>", escaped(sentence))?;
    }
    if !o.links.is_empty() {
        out.write_all(b"<div><dt>files</dt><dd class=\"links\">")?;
        for (words, href) in &o.links {
            write!(out, "<a href=\"{}\">{}</a> ", percent_encoded(href), escaped(words))?;
        }
        out.write_all(b"</dd></div>")?;
    }
    out.write_all(b"</dl>\n")
}

/// `2026-11-24 03:48:40 UTC`.
fn to_the_second(t: Time) -> String {
    let text = t.to_string();
    match (text.get(..10), text.get(11..19)) {
        (Some(day), Some(time)) => format!("{day} {time} UTC"),
        _ => text,
    }
}

/// A relative path as a link: no scheme can be read into it, whatever a server called its files.
fn percent_encoded(path: &str) -> String {
    let encoded = |b: u8| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' => char::from(b).to_string(),
        _ => format!("%{b:02X}"),
    };
    format!("./{}", path.bytes().map(encoded).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_server_rule_incident_and_times_and_what_comes_from_outside_stays_text() {
        let incident = ReportIncident {
            incident: "20261124T034846Z-x".into(),
            server: "<b>server".into(),
            rule: "dp-load-skew".into(),
            about: None,
            began: Time::from_epoch_s(1_795_492_120.0),
            began_error_s: 0.5,
            fired: Time::from_epoch_s(1_795_492_126.2),
            window: Some(Time::from_epoch_s(1_795_492_126.3)),
            facts: vec![("cause", "the router sends DP2 more (likely): 25 % -> <61 %>".into())],
            links: vec![("all".into(), "javascript:alert(\"1\")/a b.json".into())],
        };
        let mut page = Vec::new();
        write(&mut page, &incident).expect("it writes to memory");
        let page = String::from_utf8(page).expect("utf-8");
        assert!(
            page.contains("2026-11-24 03:48:40 UTC \u{b1} 0.5 s, fired 6.2 s later; the window opened 0.1 s"),
            "{page}"
        );
        assert!(
            page.contains(
                "<dt>cause</dt><dd>the router sends DP2 more (likely): 25 % -&gt; &lt;61 %&gt;</dd>"
            ),
            "{page}"
        );
        assert!(page.contains("&lt;b&gt;server") && page.contains("<b>dp-load-skew</b>"), "{page}");
        assert!(page.contains("href=\"./javascript%3Aalert%28%221%22%29/a%20b.json\""), "{page}");
    }
}
