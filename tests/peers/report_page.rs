//! The report in a real browser: headless Chromium must request nothing and report no error. Skips
//! loudly where there is no Chromium.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use skewtrap::agent::compare::{CompareRequest, RankOverrides, run};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::report::{self, History, ReportIncident, Series};
use skewtrap_trace::time::Time;

use crate::beside::installed;

/// What a browser did with a page.
#[derive(Debug, Default)]
struct Visit {
    /// Hosts that were asked for, Chromium's own errands left out.
    hosts: BTreeSet<String>,
    /// What reached the console: script errors, refused loads.
    console: Vec<String>,
    /// The document afterwards.
    dom: String,
}

fn chromium() -> Option<PathBuf> {
    installed(&["chromium", "chromium-browser", "google-chrome"])
}

fn visit(chromium: &Path, page: &Path, dir: &Path) -> Visit {
    let log = dir.join("net.json");
    let profile = dir.join("profile");
    let out = Command::new("timeout")
        .arg("60")
        .arg(chromium)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
        ])
        .args(["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--dump-dom"])
        // Nothing leaves this machine, whatever asks; the log still tells who asked.
        .args(["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=3000"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--log-net-log={}", log.display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("chromium starts");
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    let net = std::fs::read_to_string(&log).unwrap_or_default();
    let own = ["google.com", "googleapis.com", "gvt1.com", "gstatic.com"];
    let hosts = net
        .split("\"url\":\"")
        .skip(1)
        .filter_map(|u| u.split_once("://"))
        .filter(|(scheme, _)| scheme.starts_with("http") || scheme.starts_with("ws"))
        .map(|(_, rest)| rest.split(['/', '"', '?']).next().unwrap_or_default().to_owned())
        .filter(|h| !own.iter().any(|o| h.ends_with(o)))
        .collect();
    Visit {
        hosts,
        console: stderr.lines().filter(|l| l.contains("CONSOLE")).map(str::to_owned).collect(),
        dom: String::from_utf8_lossy(&out.stdout).into_owned(),
    }
}

fn history() -> History {
    let at = |s: i64| Time::from_nanos((1_795_492_100 + s) * 1_000_000_000);
    let series = |label: &str, blamed, slope: f64| Series {
        label: label.into(),
        blamed,
        points: (0..60).map(|s| (at(s), 5.0 + slope * (s - 20).max(0) as f64)).collect(),
    };
    History {
        worse_at: None,
        signal: "load <queued & running>".into(),
        onset: at(20),
        fired_at: at(25),
        window: Some((at(30), at(31))),
        shown_by: Some("load 31.000 at 2026-11-24T03:48:41.900Z, by log: [DP2] <Decode batch>".into()),
        series: vec![series("DP0", false, 0.0), series("DP2", true, 4.0)],
    }
}

fn incident() -> ReportIncident {
    ReportIncident {
        incident: "20261124T034846Z-dp-load-skew-3f9a".into(),
        server: "server <at> http".into(),
        rule: "dp-load-skew".into(),
        about: Some("One DP rank holds more running and queued requests than its peers.".into()),
        began: history().onset,
        began_error_s: 0.5,
        fired: history().fired_at,
        window: history().window.map(|w| w.0),
        facts: vec![(
            "cause",
            "the router sends DP2 more (likely): its share of requests 25 % -> 66 %".into(),
        )],
        links: vec![("traces of DP2".into(), "traces/a TP-0.trace.json.gz".into())],
    }
}

#[test]
fn the_report_requests_nothing_and_shows_no_error_in_a_real_browser() {
    let Some(chromium) = chromium() else {
        eprintln!("SKIPPED: no chromium on PATH; the report was not opened in a browser");
        return;
    };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let traces = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo/data/skew");
    let compared = run(&CompareRequest { paths: vec![traces], ..CompareRequest::default() }, &|_| {})
        .expect("it compares");
    let (incident, history) = (incident(), history());
    let context = report::Context { incident: Some(&incident), history: Some(&history) };
    let mut page = Vec::new();
    report::write_html(&mut page, &compared.comparison, context).expect("it renders");
    let text = String::from_utf8(page.clone()).expect("utf-8");
    assert!(
        !text.contains("http://") && !text.contains("https://"),
        "a page without a network has no address in it"
    );
    let path = dir.path().join("report.html");
    std::fs::write(&path, page).expect("writable");
    let seen = visit(&chromium, &path, dir.path());
    assert!(
        seen.dom.contains("DP2: ") && seen.dom.contains("_fwd_grouped_kernel_stage1"),
        "it was not rendered: {seen:?}"
    );
    assert_eq!(seen.hosts, BTreeSet::new());
    assert_eq!(seen.console, Vec::<String>::new());
}

/// Asks the layout of the page in a frame as wide as a phone: how far it is wider than that, and at
/// how many different places and widths the bars of each chart lie.
const MEASURE: &str = "<script>onload = () => {\
    const page = document.querySelector('iframe').contentDocument, root = page.documentElement;\
    const places = rows => new Set([...rows.querySelectorAll('.bar')]\
        .map(bar => bar.getBoundingClientRect()).map(at => at.left + ':' + at.width)).size;\
    document.body.dataset.seen = `overflow ${root.scrollWidth - root.clientWidth} \
places ${[...page.querySelectorAll('.rows')].map(places)}`;\
    }</script>";

#[test]
fn on_a_phone_nothing_overflows_and_all_bars_share_one_scale() {
    let Some(chromium) = chromium() else {
        eprintln!("SKIPPED: no chromium on PATH; the report's layout was not measured");
        return;
    };
    let traces = ["src/demo/data/skew", "tests/data/recordings/nsight/dp4-skew-to-dp1.sqlite.gz"];
    for traces in traces.map(|t| Path::new(env!("CARGO_MANIFEST_DIR")).join(t)) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        // Labels of two lengths: DP1 and process 742.
        let rank_overrides =
            RankOverrides { pids: [(743, Rank::dp(1))].into_iter().collect(), ..RankOverrides::default() };
        let request = CompareRequest { paths: vec![traces], rank_overrides, ..CompareRequest::default() };
        let compared = run(&request, &|_| {}).expect("it compares");
        let (incident, history) = (incident(), history());
        let context = report::Context { incident: Some(&incident), history: Some(&history) };
        let mut page = Vec::new();
        report::write_html(&mut page, &compared.comparison, context).expect("it renders");
        let text = String::from_utf8(page).expect("utf-8").replace('&', "&amp;").replace('"', "&quot;");
        let framed =
            format!("<!doctype html><iframe width=360 height=800 srcdoc=\"{text}\"></iframe>{MEASURE}");
        let path = dir.path().join("framed.html");
        std::fs::write(&path, framed).expect("writable");
        let seen = visit(&chromium, &path, dir.path());
        let (_, said) =
            seen.dom.split_once("data-seen=\"").unwrap_or_else(|| panic!("not measured: {seen:?}"));
        assert_eq!(said.split('"').next(), Some("overflow 0 places 1"));
    }
}

#[test]
fn the_browser_test_would_see_a_request_and_a_script_error() {
    let Some(chromium) = chromium() else {
        eprintln!("SKIPPED: no chromium on PATH");
        return;
    };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("bad.html");
    let bad =
        "<!doctype html><p>x</p><img src=\"http://elsewhere.invalid/x.png\"><script>nosuch.thing()</script>";
    std::fs::write(&path, bad).expect("writable");
    let seen = visit(&chromium, &path, dir.path());
    assert!(seen.hosts.contains("elsewhere.invalid"), "{seen:?}");
    assert!(seen.console.iter().any(|l| l.contains("nosuch")), "{seen:?}");
}
