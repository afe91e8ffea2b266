//! The status page in a real Chromium, driven over its debugging pipe.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use skewtrap::clock::wall_time;
use skewtrap::serve::metrics::Metrics;
use skewtrap::serve::published::{Publisher, Vitals, publisher};
use skewtrap::serve::{ApiContext, ApiServer, ServeConfig};
use skewtrap_core::capture::refusal::Reason;
use skewtrap_core::factor::Mark;
use skewtrap_core::finding::{Finding, Side};
use skewtrap_core::incident::{
    CaptureOutcome, Escalation, Incident, IncidentState, Joined, Marked, Raised, Refused, Returned, STANDING,
};
use skewtrap_core::message::{Facts, Origin, sample, utc};
use skewtrap_core::rule::RuleState;
use skewtrap_core::rule::Severity;
use skewtrap_core::signal::source::SourceState;
use skewtrap_core::status::{
    BudgetStatus, GroupStatus, History, HistoryLine, LimitStatus, RankStatus, ReceiverStatus, RuleStatus,
    SignalStatus, SourceStatus, Status, TargetStatus,
};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const CHROMIUM: &str = "chromium";

// ---- the browser ----

/// A Chromium with one page, spoken to through two named pipes that are its descriptors 3 and 4.
struct Browser {
    process: Child,
    to: pipe::Sender,
    from: pipe::Receiver,
    unread: Vec<u8>,
    session: Option<String>,
    sent: u64,
    /// Exceptions and console errors of the page so far.
    errors: Vec<String>,
    _dir: tempfile::TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Browser {
    async fn start() -> Option<Self> {
        if Command::new(CHROMIUM).arg("--version").output().is_err() {
            eprintln!("SKIPPED: the status page in a real browser (chromium is not installed)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let (to, from) = (dir.path().join("to"), dir.path().join("from"));
        assert!(Command::new("mkfifo").args([&to, &from]).status().unwrap().success());
        // Read and write, so that opening does not wait for the browser.
        let to_pipe = pipe::OpenOptions::new().read_write(true).open_sender(&to).unwrap();
        let from_pipe = pipe::OpenOptions::new().read_write(true).open_receiver(&from).unwrap();
        let process = Command::new("sh")
            .args(["-c", "to=$1; from=$2; shift 2; exec \"$@\" 3<\"$to\" 4>\"$from\"", "sh"])
            .args([&to, &from])
            .args([
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-sync",
            ])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-dev-shm-usage",
            ])
            .args(["--hide-scrollbars", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
            .arg("about:blank")
            // Far from UTC, in which the page tells times.
            .env("TZ", "Asia/Kolkata")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self {
            process,
            to: to_pipe,
            from: from_pipe,
            unread: Vec::new(),
            session: None,
            sent: 0,
            errors: Vec::new(),
            _dir: dir,
        })
    }

    /// Sends a command and reads until its answer; events on the way are kept where they are errors.
    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let mut message = json!({ "id": self.sent, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).await.unwrap();
        let id = self.sent;
        let reading = async {
            loop {
                let message = self.read().await;
                if message["id"] == id {
                    assert!(message.get("error").is_none(), "{method}: {message}");
                    return message["result"].clone();
                }
                self.note(&message);
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reading)
            .await
            .unwrap_or_else(|_| panic!("{method} hangs"))
    }

    async fn read(&mut self) -> Value {
        loop {
            if let Some(end) = self.unread.iter().position(|&b| b == 0) {
                let message = serde_json::from_slice(&self.unread[..end]).unwrap();
                self.unread.drain(..=end);
                return message;
            }
            let count = self.from.read_buf(&mut self.unread).await.unwrap();
            assert!(count > 0, "the browser is gone");
        }
    }

    /// A refused connection is what the page must survive; anything else is an error of ours.
    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        match event["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" => self.errors.push(params["exceptionDetails"].to_string()),
            "Runtime.consoleAPICalled" if params["type"] == "error" => self.errors.push(params.to_string()),
            "Log.entryAdded"
                if params["entry"]["level"] == "error" && params["entry"]["source"] != "network" =>
            {
                self.errors.push(params["entry"].to_string());
            }
            _ => {}
        }
    }

    async fn open(&mut self, url: &str) {
        let target =
            self.call("Target.createTarget", json!({ "url": "about:blank" })).await["targetId"].clone();
        let attached =
            self.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true })).await;
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Runtime.enable", "Log.enable", "Page.enable"] {
            self.call(domain, json!({})).await;
        }
        self.call("Page.navigate", json!({ "url": url })).await;
    }

    async fn eval(&mut self, script: &str) -> Value {
        let params = json!({ "expression": script, "returnByValue": true, "awaitPromise": true });
        let result = self.call("Runtime.evaluate", params).await;
        assert!(result.get("exceptionDetails").is_none(), "{script}: {result}");
        result["result"]["value"].clone()
    }

    /// Looks until the script gives `true`; while the page loads it may well throw.
    async fn until(&mut self, script: &str) {
        let safe = format!("(() => {{ try {{ return {script} }} catch {{ return false }} }})()");
        for _ in 0..600 {
            if self.eval(&safe).await == true {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let text = self.eval("document.body.innerText").await;
        panic!("never true: {script}\n{}\nerrors: {:?}", text.as_str().unwrap_or_default(), self.errors);
    }

    async fn press(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            let code = match key {
                "Escape" => 27,
                "Enter" => 13,
                _ => 37,
            };
            let mut event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code });
            // A button is pressed by the character, not by the key.
            if key == "Enter" && kind == "keyDown" {
                event["text"] = json!("\r");
            }
            self.call("Input.dispatchKeyEvent", event).await;
        }
    }

    async fn look(&mut self, width: u32, scheme: &str, name: &str) {
        let metrics = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", metrics).await;
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", media).await;
        let shot = self.call("Page.captureScreenshot", json!({ "captureBeyondViewport": true })).await;
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("page");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("{name}.png.base64")), shot["data"].as_str().unwrap()).unwrap();
    }
}

// ---- the agent behind the page ----

struct Agent {
    address: SocketAddr,
    publisher: Publisher,
    cancel: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl Agent {
    async fn start(listen: SocketAddr, dir: &Path, first: Status) -> Self {
        let (publisher, published) = publisher(Vitals::default());
        publisher.publish_fixed(first);
        let (commands, _) = mpsc::channel(1);
        let config = ServeConfig {
            listen,
            metrics_listen: None,
            token: None,
            own_token: Arc::default(),
            hosts: Vec::new(),
            incident_dir: dir.to_owned(),
        };
        let doors =
            ApiContext { published, commands, metrics: Arc::new(Metrics::default()), alerts: Arc::default() };
        let server = loop {
            let (server, troubles) = ApiServer::bind(&config, doors.clone()).await;
            if troubles.is_empty() {
                break server;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let (address, cancel) = (server.address().unwrap(), CancellationToken::new());
        let running = tokio::spawn(server.run(cancel.clone()));
        Self { address, publisher, cancel, running }
    }

    async fn stop(self) -> SocketAddr {
        self.cancel.cancel();
        self.running.await.unwrap();
        self.address
    }
}

const LOADS: [f64; 8] = [9.0, 10.0, 46.0, 8.0, 11.0, 7.0, 9.0, 0.0];

fn incident(id: &str, fired_at: Time, resolved: bool) -> Incident {
    let mut incident = sample(fired_at);
    incident.id = id.into();
    incident.bundle = Some(format!("/var/lib/skewtrap/incidents/{id}"));
    if resolved {
        incident.state = IncidentState::Resolved;
        incident.resolved_at = Some(fired_at + Duration::from_secs(75));
    }
    incident
}

/// A wide server with one rank that has too much and one that is silent.
/// What a server says whose ranks show one load.
const NOT_WATCHED: &str = "its 8 ranks (tp 8) work on one batch together and show one load for all of them";

fn status(started: Time) -> Status {
    let at = wall_time();
    let onset = at - Duration::from_secs(60);
    let rank = |i: usize| Rank::dp(u16::try_from(i).unwrap()).labels();
    let source = |kind: &str, place: &str, state, problem: Option<&str>| SourceStatus {
        kind: kind.into(),
        place: place.into(),
        state,
        problem: problem.map(str::to_owned),
        is_behind: false,
        remark: None,
        last: Some(at),
        lag_s: Some(0.02),
        samples: 5200,
        dropped: 3,
    };
    let group = |state, why: &str, value, blamed: Option<usize>| GroupStatus {
        target: "server".into(),
        group: serde_json::from_str(r#"{"role": "unified"}"#).unwrap(),
        state,
        why: why.into(),
        since: Some(onset),
        statistic: "max_over_mean of load".into(),
        value,
        bound: Some(1.5),
        rank: blamed.map(rank),
        incident: blamed.map(|_| "20261124T034846Z-dp-load-skew-3f9a".into()),
        refused: blamed.map(|_| "the rule's cooldown lasts until 09:10".into()),
        again: None,
    };
    let rule = |name: &str, about: &str, groups| RuleStatus {
        name: name.into(),
        about: Some(about.into()),
        severity: Severity::Warning,
        capture: "http, 10 steps, at most 30 s".into(),
        groups,
        last_evaluated: Some(at),
        silenced_until: None,
    };
    let line = |i: usize| {
        let values = (0..300u16).map(|n| {
            let wave = f64::from((u32::from(n) * 7 + i as u32 * 13) % 5);
            let skewed = n > 240 && i == 2;
            (i != 7 || n < 260).then_some(if skewed { 46.0 } else { 7.0 + wave })
        });
        HistoryLine { target: "server".into(), rank: rank(i), values: values.collect() }
    };
    let signals = |i: usize| {
        let signal = SignalStatus { value: LOADS[i], at, stale: i == 7, source: "loads".into() };
        RankStatus { rank: rank(i), signals: [("load".into(), signal)].into() }
    };
    let mut old = incident("20261120T101500Z-kv-skew-77aa", at - Duration::from_secs(4 * 86_400), true);
    old.rule = "kv-skew".into();
    old.capture = CaptureOutcome::Refused(Refused {
        reason: Reason::DailyWindows,
        why: "four windows were opened in 24 h; the next may open in 3 h".into(),
    });
    old.verdict = None;
    Status {
        version: "0.2.0".into(),
        started,
        at,
        targets: vec![TargetStatus {
            name: "server".into(),
            url: "http://10.0.0.7:30000".into(),
            engine: "sglang".into(),
            engine_version: Some("0.5.16".into()),
            unanswered_since: None,
            sources: vec![
                source("loads", "http://10.0.0.7:30000/v1/loads", SourceState::Ok, None),
                source(
                    "log",
                    "/var/log/sglang/server.log",
                    SourceState::Failing,
                    Some("the file is not there; it is read from its beginning as soon as it appears"),
                ),
            ],
            ranks: (0..8).map(signals).collect(),
            not_watched: Some(NOT_WATCHED.into()),
        }],
        rules: vec![
            rule(
                "dp-load-skew",
                "One DP rank holds more running and queued requests than its peers.",
                vec![group(
                    RuleState::Firing,
                    "max_over_mean of load is 2.52, above 1.5, for 57 s",
                    Some(2.52),
                    Some(2),
                )],
            ),
            rule(
                "dp-kv-skew",
                "One DP rank's KV cache fills ahead of its peers'.",
                vec![group(
                    RuleState::Unknown,
                    "no value of kv_usage yet: the server's metrics are not enabled (--enable-metrics)",
                    None,
                    None,
                )],
            ),
            rule("starved-rank", "A rank waits while its peers work.", vec![]),
        ],
        incidents: vec![
            incident("20261124T034846Z-dp-load-skew-3f9a", at - Duration::from_secs(57), false),
            old,
        ],
        budget: BudgetStatus {
            limits: vec![LimitStatus {
                of: "all rules".into(),
                used: 1,
                captures: 4,
                per_s: 86_400.0,
                cooldown_until: Some(at + Duration::from_secs(540)),
            }],
            bundle_bytes: 61_000_000,
            bundle_bytes_limit: Some(20_000_000_000),
            free_bytes: Some(90_000_000_000),
            stalled_s: 0.7,
            stalled_s_limit: 120.0,
            written_bytes: 12_000_000,
            written_bytes_limit: 20_000_000_000,
        },
        receivers: vec![ReceiverStatus {
            name: "oncall".into(),
            means: "webhook".into(),
            pending: 2,
            last_sent: None,
            problem: Some("no answer within 10 s".into()),
        }],
        history: vec![History {
            signal: "load".into(),
            end: at,
            step_s: 1.0,
            lines: (0..8).map(line).collect(),
        }],
        ..Status::default()
    }
}

fn bundle(dir: &Path) {
    let at = dir.join("20261124T034846Z-dp-load-skew-3f9a");
    std::fs::create_dir_all(&at).unwrap();
    std::fs::write(
        at.join("report.html"),
        "<!doctype html><meta charset=utf-8><title>report</title><style>body{font:16px sans-serif}</style>\
         <h1>DP2 has more work</h1><script>document.title = 'drawn'</script>",
    )
    .unwrap();
    std::fs::write(at.join("evidence.jsonl"), "{}\n").unwrap();
}

const FITS: &str = "document.documentElement.scrollWidth <= document.documentElement.clientWidth";

/// The smallest contrast of any text with what is behind it, after WCAG.
const CONTRAST: &str = r#"(() => {
  const rgb = c => (c.match(/[\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = node => { for (; node; node = node.parentElement) { const c = rgb(getComputedStyle(node).backgroundColor); if (c[3] !== 0) return c; } return [255, 255, 255]; };
  let worst = [99, ""];
  for (const node of document.querySelectorAll("body *")) {
    if (!node.offsetParent || ![...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, node.textContent.slice(0, 40)];
  }
  return worst;
})()"#;

/// The smallest contrast of any control's border with what is around it (WCAG 1.4.11 asks for 3).
const BORDERS: &str = r#"(() => {
  const rgb = c => (c.match(/[\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = node => { for (; node; node = node.parentElement) { const c = rgb(getComputedStyle(node).backgroundColor); if (c[3] !== 0) return c; } return [255, 255, 255]; };
  let worst = [99, ""];
  for (const node of document.querySelectorAll("input, select, button, .button")) {
    if (!node.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).borderTopColor)), light(ground(node.parentElement))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, node.outerHTML.slice(0, 80)];
  }
  return worst;
})()"#;

/// Whether the list of incidents is a table for a screen reader, also where its rows are drawn as blocks.
const TABLE: &str = r#"(() => {
  const table = document.querySelector('#incidents table'), roles = s => [...table.querySelectorAll(s)].map(n => n.getAttribute("role"));
  return table.getAttribute("role") === "table" && getComputedStyle(table.querySelector("thead")).display !== "none"
    && roles("tr").every(r => r === "row") && roles("td").every(r => r === "cell") && roles("th").every(r => r === "columnheader");
})()"#;

/// Controls without a name for a screen reader.
const UNNAMED: &str = r#"[...document.querySelectorAll("a, button, select, input, iframe, summary, [tabindex='0']")]
  .filter(node => node.checkVisibility() && !(node.getAttribute("aria-label") || node.title || node.textContent.trim() || node.labels?.[0]?.textContent.trim()))
  .map(node => node.outerHTML)"#;

#[tokio::test]
async fn the_page_updates_survives_the_agents_restart_and_fits_phones_and_desks() {
    let Some(mut browser) = Browser::start().await else { return };
    let dir = tempfile::tempdir().unwrap();
    bundle(dir.path());
    let started = wall_time() - Duration::from_secs(250);
    let agent = Agent::start("127.0.0.1:0".parse().unwrap(), dir.path(), status(started)).await;
    browser.open(&format!("http://{}/", agent.address)).await;

    // What it shows.
    browser.until("document.querySelectorAll('.rank').length === 8").await;
    browser.until("document.querySelector('.rank.blamed b').textContent === 'DP2'").await;
    browser.until("document.body.innerText.includes('DP7 (silent)')").await;
    browser.until("document.body.innerText.includes('the server\\'s metrics are not enabled')").await;
    browser.until("document.title.startsWith('● DP2')").await;
    // That nothing fires says nothing where ranks show one load.
    let notice = "[...document.querySelectorAll('.notice')].map(n => n.innerText)";
    browser.until(&format!("{notice}.length === 1")).await;
    assert_eq!(browser.eval(notice).await, json!([format!("Not watched: server: {NOT_WATCHED}")]));

    // One chart of all ranks, read by the keyboard, with the incident on it.
    browser.until("document.querySelectorAll('.plot path.line').length === 8").await;
    browser.until("document.querySelectorAll('.plot path.line.blamed').length === 1").await;
    browser.until("document.querySelector('.plot').getAttribute('aria-label').includes('the highest is DP2 with 46')").await;
    browser.eval("document.querySelector('.plot').focus()").await;
    browser.press("ArrowLeft").await;
    browser.until("document.querySelector('.readout').textContent.includes('DP2 46')").await;
    browser.until("document.querySelector('.plot a.incident').getAttribute('aria-label').includes('DP2 dp-load-skew')").await;
    browser
        .until("document.querySelector('.alarm').innerText.includes('No window: the rule\\'s cooldown')")
        .await;
    // Before the agent began the chart says so: about 50 of its 300 seconds.
    let band = browser.eval("document.querySelector('rect.away').width.baseVal.value / (document.querySelector('.plot svg').width.baseVal.value - 54)").await;
    assert!((band.as_f64().unwrap() - 1.0 / 6.0).abs() < 0.02, "{band}");
    browser.until("document.querySelector('.plot text.away').textContent.includes('not running')").await;
    browser
        .until(
            "document.querySelector('.plot').getAttribute('aria-label').includes('has been running since')",
        )
        .await;

    // A change needs the token; what the agent answers is shown. Every control has a name.
    browser.eval("document.querySelector('.alarm button').click()").await;
    browser.eval("document.querySelector('#token').value = 'x'; document.querySelector('dialog form').requestSubmit()").await;
    browser.until("document.querySelector('dialog .problem').textContent.startsWith('nothing can be changed through this agent')").await;
    assert_eq!(browser.eval(UNNAMED).await, json!([]));
    browser.press("Escape").await;
    browser.until("!document.querySelector('dialog').open").await;

    // It updates.
    let mut next = status(started);
    next.targets[0].ranks[2].signals.get_mut("load").unwrap().value = 61.0;
    agent.publisher.publish_fixed(next);
    browser.until("document.querySelector('.rank.blamed .value').textContent === '61'").await;

    // An incident and its report.
    browser.eval("document.querySelector('#incidents a').click()").await;
    browser.until("!document.getElementById('incident').hidden").await;
    browser.until("document.querySelector('#incident iframe') !== null").await;
    browser.until("document.querySelector('#incident').innerText.includes('61 % of it in attention')").await;

    // It got worse, and was captured again.
    let mut again = status(started);
    let worse = &mut again.incidents[0];
    worse.capture_again(worse.capture.clone(), Some(1.68));
    worse.worse = Some(Escalation {
        at: worse.fired_at,
        value: 4.5,
        times_bound: 3.0,
        window: worse.window(),
        refused: None,
    });
    // What a message says of it stands here as well.
    let at = worse.fired_at;
    worse.joined.push(Joined {
        at,
        rule: "kv-usage-skew".into(),
        rank: Rank::dp(2).labels(),
        side: Side::High,
        what: String::new(),
        until: None,
    });
    worse.returned.push(Returned { ended: at, at: at + Duration::from_secs(9) });
    worse.raised.push(Raised { at, from: Severity::Info });
    if let CaptureOutcome::Done(captured) = &mut worse.capture {
        (captured.stall_s, captured.longest_stall_s, captured.unseen_stall_below_s) = (0.0, None, Some(5.0));
    }
    let bundle = dir.path().join(&*worse.id);
    std::fs::write(bundle.join("report-2.html"), "<!doctype html><title>report</title>second").unwrap();
    again.rules[0].groups[0].again = Some("it is captured again from 4.50 times on".into());
    agent.publisher.publish_fixed(again);
    let said = |text: &str| format!("document.querySelector('#incident').innerText.includes('{text}')");
    browser.until(&said("and was captured again: 4 files")).await;
    for also in [
        "kv-usage-skew: DP2 is high from ",
        "it seemed to be over at ",
        "its severity was info",
        "unknown: no silence of 5 s or longer was seen",
        "look at the router",
    ] {
        browser.until(&said(also)).await;
    }
    let time = "document.querySelector('#incidents td.num').textContent";
    let shown = browser.eval(time).await;
    let wanted = format!("{} UTC", &utc(at)["2026-11-24 ".len()..][.."03:48:41".len()]);
    assert!(shown.as_str().is_some_and(|shown| shown.ends_with(&wanted)), "{shown} is not {wanted}");
    browser.until(&said("capture 1, at 1.68 times its bound: 4 files")).await;
    browser.until("document.querySelectorAll('#incident iframe').length === 2").await;
    browser.until("document.body.innerText.includes('it is captured again from 4.50 times on')").await;

    // It reads well, narrow and wide, by day and by night.
    for (width, scheme) in [(360, "light"), (360, "dark"), (1440, "light"), (1440, "dark")] {
        browser.look(width, scheme, &format!("{width}-{scheme}")).await;
        assert_eq!(browser.eval(FITS).await, true, "it scrolls sideways at {width}");
        let worst = browser.eval(CONTRAST).await;
        assert!(worst[0].as_f64().unwrap() >= 4.5, "{width} {scheme}: contrast {worst}");
        let worst = browser.eval(BORDERS).await;
        assert!(worst[0].as_f64().unwrap() >= 3.0, "{width} {scheme}: border {worst}");
        assert_eq!(browser.eval(TABLE).await, true, "{width}: no table for a screen reader");
    }

    // The agent goes and comes back with another start.
    let address = agent.stop().await;
    browser.until("!document.getElementById('trouble').hidden").await;
    browser.until("document.querySelectorAll('.rank').length === 8").await;
    browser.look(1440, "light", "lost").await;
    let mut quiet = status(wall_time());
    quiet.rules[0].groups[0].state = RuleState::Idle;
    quiet.rules[0].groups[0].rank = None;
    let agent = Agent::start(address, dir.path(), quiet).await;
    browser.until("document.getElementById('trouble').hidden").await;
    browser.until("document.querySelector('.rank.blamed') === null && document.title === 'skewtrap'").await;

    assert!(browser.errors.is_empty(), "{:#?}", browser.errors);
    agent.stop().await;
}

#[tokio::test]
async fn an_incident_says_since_when_for_how_long_and_whom_its_verdict_was_held_against() {
    let Some(mut browser) = Browser::start().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let started = wall_time();
    let of = |change: &dyn Fn(&mut Incident)| {
        let mut status = status(started);
        change(&mut status.incidents[0]);
        status
    };
    let agent = Agent::start("127.0.0.1:0".parse().unwrap(), dir.path(), of(&|_| {})).await;
    browser.open(&format!("http://{}/", agent.address)).await;
    browser.until("document.querySelector('#incidents a') !== null").await;
    browser.eval("document.querySelector('#incidents a').click()").await;
    let said = |text: &str| format!("document.querySelector('#incident').innerText.includes('{text}')");
    browser.until(&said("61 % of it in attention")).await;
    // The sentences are those of its messages.
    let incident = &status(started).incidents[0];
    let facts = Facts::of(incident, &Origin::default());
    let exact = ["how much", "impact", "cause", "not it", "capture", "cost"];
    let told: Vec<(&str, &str)> =
        facts.lines().into_iter().filter(|(name, _)| exact.contains(name)).collect();
    assert_eq!(told.len(), exact.len());
    for (_, sentence) in told {
        let shown =
            format!("document.querySelector('#incident dl').textContent.includes({})", json!(sentence));
        browser.until(&shown).await;
    }
    assert_eq!(browser.eval(&said("ompared while")).await, false);
    // What somebody said of it stands in the list, in the alarm and with the incident.
    let marked = |incident: &mut Incident| {
        incident.marked = Some(Marked { mark: Mark::Noise, at: incident.fired_at });
    };
    agent.publisher.publish_fixed(of(&marked));
    browser.until(&said("noise, said at ")).await;
    for place in ["#incidents", ".alarm"] {
        browser
            .until(&format!("/marked as noise, said at /i.test(document.querySelector('{place}').innerText)"))
            .await;
    }
    agent.publisher.publish_fixed(of(&|incident| {
        let finding = Finding { rank: Rank::dp(0).labels(), ..incident.finding.clone() };
        incident.blame(finding, incident.fired_at);
    }));
    browser.until(&said("(compared while DP2 was blamed: it confirms nothing of DP0)")).await;
    browser.until(&said("; compared while DP2 was blamed: it confirms nothing of DP0")).await;
    agent.publisher.publish_fixed(of(&|incident| {
        incident.resolve(incident.fired_at + Duration::from_secs(60));
        incident.ended_unseen = true;
    }));
    browser.until(&said("; its end was not seen, since the agent was restarted: it was over at")).await;
    agent.publisher.publish_fixed(of(&|incident| incident.rule = STANDING.into()));
    browser.until(&said(", when its ranks were first compared")).await;
    let stuck = of(&|incident| {
        incident.finding.measured.as_mut().unwrap().signal = "stuck".into();
        (incident.impact, incident.usual_pause_s) = (None, Some(1.4));
    });
    agent.publisher.publish_fixed(stuck);
    browser.until(&said("it had stood still for 4.2 s when that was found; ranks with work have paused for 1.4 s at most here")).await;
    assert_eq!(browser.eval(&said("times the firing bound")).await, false);

    let mut behind = status(started);
    behind.targets[0].sources[0].is_behind = true;
    agent.publisher.publish_fixed(behind);
    browser
        .until("document.body.innerText.includes('answers, but the agent is BEHIND with what it says')")
        .await;
    let mut lost = status(started);
    lost.targets[0].unanswered_since = Some(started);
    agent.publisher.publish_fixed(lost);
    browser.until("document.body.innerText.includes('has NOT answered since')").await;
    assert!(browser.errors.is_empty(), "{:#?}", browser.errors);
    agent.stop().await;
}

#[tokio::test]
async fn the_ranks_of_a_wide_server_are_rows_of_one_map_that_fits_phones_and_desks() {
    let Some(mut browser) = Browser::start().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut wide = status(wall_time());
    let model = wide.history[0].lines[0].values.clone();
    wide.history[0].lines = (0..128u16)
        .map(|i| {
            let values = model.iter().map(|v| if i == 2 { Some(46.0) } else { *v }).collect();
            HistoryLine { target: "server".into(), rank: Rank::dp(i).labels(), values }
        })
        .collect();
    let agent = Agent::start("127.0.0.1:0".parse().unwrap(), dir.path(), wide).await;
    browser.open(&format!("http://{}/", agent.address)).await;
    browser.until("document.querySelector('.plot canvas').height > 128 * 3").await;
    browser.until("document.querySelector('.plot rect.outline') !== null").await;
    // The cards of so many ranks are drawn when they are asked for.
    assert_eq!(browser.eval("document.querySelectorAll('.rank').length").await, 0);
    for (width, scheme) in [(360, "light"), (1440, "dark")] {
        browser.look(width, scheme, &format!("wide-{width}-{scheme}")).await;
        assert_eq!(browser.eval(FITS).await, true, "it scrolls sideways at {width}");
    }
    browser.eval("document.querySelector('.each summary').click()").await;
    browser.until("document.querySelectorAll('.rank').length === 128").await;
    assert!(browser.errors.is_empty(), "{:#?}", browser.errors);
    agent.stop().await;
}

#[tokio::test]
async fn beyond_the_first_servers_the_page_goes_on_by_keyboard_and_on_a_phone() {
    let Some(mut browser) = Browser::start().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut many = status(wall_time());
    let (model, line) = (many.targets[0].clone(), many.history[0].lines[0].clone());
    let name = |i: usize| -> Arc<str> { format!("server-{i}").into() };
    many.targets = (0..60).map(|i| TargetStatus { name: name(i), ..model.clone() }).collect();
    many.history[0].lines = (0..60).map(|i| HistoryLine { target: name(i), ..line.clone() }).collect();
    let agent = Agent::start("127.0.0.1:0".parse().unwrap(), dir.path(), many).await;
    browser.open(&format!("http://{}/", agent.address)).await;
    let says =
        |text: &str| format!("document.getElementById('servers-shown').textContent.startsWith('{text}')");
    let charts = |n: usize, first: usize| {
        format!(
            "document.querySelectorAll('.server').length === {n} && document.querySelector('.server b').textContent === 'server-{first}'"
        )
    };
    browser.until(&says("servers 1 to 25 of 60")).await;
    browser.until(&charts(25, 0)).await;
    browser.eval("document.getElementById('further').focus()").await;
    for (said, shown, first) in [("servers 26 to 50 of 60", 25, 25), ("servers 51 to 60 of 60", 10, 50)] {
        browser.press("Enter").await;
        browser.until(&says(said)).await;
        browser.until(&charts(shown, first)).await;
    }
    // There is nothing behind them, and the button keeps the focus.
    browser.until("document.activeElement.id === 'further' && document.activeElement.getAttribute('aria-disabled') === 'true'").await;
    browser.eval("document.getElementById('earlier').focus()").await;
    browser.press("Enter").await;
    browser.until(&says("servers 26 to 50 of 60")).await;
    let find = |name: &str| {
        format!(
            "document.getElementById('server').value = '{name}'; document.getElementById('find').requestSubmit()"
        )
    };
    browser.eval(&find("server-57")).await;
    browser.until(&charts(1, 57)).await;
    browser.eval(&find("gone")).await;
    browser.until(&says("no server is named gone")).await;
    browser.eval(&find("")).await;
    browser.until(&charts(25, 25)).await;
    assert_eq!(browser.eval(UNNAMED).await, json!([]));
    browser.look(360, "light", "servers-360").await;
    assert_eq!(browser.eval(FITS).await, true, "it scrolls sideways at 360");
    assert!(browser.errors.is_empty(), "{:#?}", browser.errors);
    agent.stop().await;
}

#[tokio::test]
async fn a_hostile_log_line_is_shown_as_text_and_an_empty_agent_says_what_is_missing() {
    let Some(mut browser) = Browser::start().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let empty = Status { version: "0.2.0".into(), at: wall_time(), ..Status::default() };
    let agent = Agent::start("127.0.0.1:0".parse().unwrap(), dir.path(), empty).await;
    browser.open(&format!("http://{}/", agent.address)).await;
    browser.until("document.body.innerText.includes('No rank has reported yet')").await;
    browser.look(1440, "light", "empty").await;

    let attack = "<img src=x onerror='window.owned=1'><script>window.owned=1</script>";
    let mut hostile = status(wall_time());
    hostile.incidents[0].finding.shown_by.as_mut().unwrap().line = Some(attack.into());
    hostile.incidents[0].rule = attack.into();
    hostile.rules[0].name = attack.into();
    hostile.rules[0].groups[0].why = attack.into();
    hostile.targets[0].sources[1].problem = Some(attack.into());
    agent.publisher.publish_fixed(hostile);
    browser.until("document.querySelector('#incidents a') !== null").await;
    browser.eval("document.querySelector('#incidents a').click()").await;
    browser.until("document.querySelector('#incident code').textContent.includes('onerror')").await;
    assert_eq!(browser.eval("window.owned === undefined && !document.querySelector('main img')").await, true);
    assert!(browser.errors.is_empty(), "{:#?}", browser.errors);
    agent.stop().await;
}
