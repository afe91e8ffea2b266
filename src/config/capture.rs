//! `capture:` in YAML: what a rule may ask a profiler for, in the profile API's own names.
//!
//! What no server accepts is refused here, with its line. What depends on the server is decided when
//! its version is known (`skewtrap_core::capture::plan`).

use std::time::Duration;

#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;

use super::de::Field;
use super::diagnostic::Findings;
use super::effective::Settings;
use super::quantity::Span;
use super::tree::Place;
use skewtrap_core::amount::Span as Shown;
use skewtrap_core::capture::risk::{ACTIVITIES, RISKS};
use skewtrap_core::capture::risk::{MAX_DEADLINE, MAX_STEPS};
use skewtrap_core::capture::size::{MAX_STALL, written};
use skewtrap_core::capture::sizing::{before_the_first, fewer_before_the_first, max_stall_of};
use skewtrap_core::capture::{CaptureSpec, CommandWindow, HttpWindow, NsysSession, NsysWindow};

/// What to capture when a rule fires.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CaptureText {
    /// Nothing: record and notify only.
    None,
    /// A window of the engine's own profiler, over HTTP.
    Http(HttpText),
    /// A window of an Nsight Systems session that already wraps the server.
    Nsys(NsysText),
    /// SGLang's CUDA_PROFILER activity, for servers run under `nsys --capture-range=cudaProfilerApi`.
    CudaProfilerApi(HttpText),
    /// A program of your own.
    Command(CommandText),
}

/// A window of the engine's profiler. Keys are the profile API's own.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct HttpText {
    /// The folder for traces, as the server sees it. Without it no folder is sent.
    output_dir: Field<String>,
    /// How long the window may silence the slowest rank: it gets as many steps as are predicted to stay
    /// below. Default 300ms where `num_steps` is not written either, at most 10s.
    max_stall: Field<Span>,
    /// The same where the slowest rank's host is at least twice as slow as usual, and writes as much more slowly.
    /// Default: no more than `max_stall`, so that most windows on slow hosts are refused; at most 10s.
    max_stall_slow_host: Field<Span>,
    /// Forward steps per rank, 1 to 1000. Default: as many as `max_stall` allows. With `max_stall` beside
    /// it the window is refused where they would cost more.
    num_steps: Field<u32>,
    /// `CPU`, `GPU`, `MEM`, `RPD`, `XPU`. Default: GPU alone, and CPU on a server without a GPU.
    activities: Field<Vec<Field<String>>>,
    /// What is recorded, and what in a second window of the incident where the first one blames a host:
    /// `[gpu, cpu]` asks for a small one with CPU activity within the same `max_stall`, once an incident, never
    /// with stacks unless they are written. Default: `[gpu]`, no second window.
    escalate: Field<Vec<Recording>>,
    /// Record Python stacks: slow, large, and needs `accept_risk: [with_stack]`.
    with_stack: Field<bool>,
    /// Record tensor shapes: larger traces.
    record_shapes: Field<bool>,
    /// Separate files for prefill and decode; needs `accept_risk: [profile_by_stage]`.
    profile_by_stage: Field<bool>,
    /// Which stages.
    profile_stages: Field<Vec<Field<String>>>,
    /// Front part of the file names.
    profile_prefix: Field<String>,
    /// Middle part of the file names.
    profile_id: Field<String>,
    /// KV aggregates in the step names.
    detailed_annotations: Field<bool>,
    /// One merged file beside the ranks' own, made by the agent after verification.
    merge_profiles: Field<bool>,
    /// Refused unless `accept_risk: [start_step]`; use `warmup`.
    start_step: Field<u64>,
    /// Wait this long, check again whether the rule still fires, then start. Default 0s.
    warmup: Field<Span>,
    /// End the window when the rule clears.
    until: Field<Until>,
    /// The window is stopped at the latest then. Default 5s, at most 30s.
    deadline: Field<Span>,
    /// Risks that you accept: with_stack, profile_by_stage, mem_on_rocm, start_step, long_nsys,
    /// server_timer.
    accept_risk: Field<Vec<Field<String>>>,
}

/// What a window records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Recording {
    /// GPU activity alone.
    Gpu,
    /// CPU and GPU activity.
    Cpu,
}

/// When a flexible window ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// When the rule clears.
    Cleared,
}

/// A window of an Nsight Systems session.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct NsysText {
    /// A session's name or id; `of_target` (default) is the one that wraps the target's process.
    session: Field<String>,
    /// How long, at most 5s. Default 500ms.
    duration: Field<Span>,
    /// More arguments of `nsys start`.
    args: Field<Vec<Field<String>>>,
    /// Risks that you accept: long_nsys.
    accept_risk: Field<Vec<Field<String>>>,
}

/// A program of your own.
#[derive(Clone, Debug, Default, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct CommandText {
    /// Program and arguments; `{incident}`, `{rank}` and `{output_dir}` are replaced. No shell.
    argv: Field<Vec<Field<String>>>,
    /// It is killed then. Default 30s, at most 10m.
    time_limit: Field<Span>,
}

/// A report takes far longer to write than its window.
const MAX_NSYS: Duration = Duration::from_secs(5);
const MAX_COMMAND: Duration = Duration::from_secs(600);

/// Why `start_step` needs `accept_risk`.
const START_STEP: &str = "the server takes `start_step` as an absolute step of each rank, and one that lies \
                          ahead leaves a window that cannot be disarmed";

/// Checks the `capture` of a rule, or the default one of the file.
pub fn capture_of(
    text: &Field<CaptureText>,
    default: &CaptureSpec,
    settings: &mut Settings,
    findings: &mut Findings<'_>,
) -> CaptureSpec {
    let Some((text, place)) = text.placed() else {
        settings.record_unset("capture", default.word());
        record_default(default, settings);
        return default.clone();
    };
    settings.record_set("capture", text.word(), place);
    match text {
        CaptureText::None => CaptureSpec::None,
        CaptureText::Http(http) => {
            let window = http.check(default, findings);
            http.record("http", &window, settings);
            CaptureSpec::Http(window)
        }
        CaptureText::CudaProfilerApi(http) => {
            if let Some(place) = http.activities.place() {
                findings.error(
                    place,
                    "`cuda_profiler_api` sets `activities` itself",
                    Some("take it out".into()),
                );
            }
            let mut window = http.check(default, findings);
            window.activities = Some(vec!["CUDA_PROFILER".into()]);
            http.record("cuda_profiler_api", &window, settings);
            CaptureSpec::CudaProfilerApi(window)
        }
        CaptureText::Nsys(nsys) => {
            let window = nsys.check(findings);
            nsys.record(&window, settings);
            CaptureSpec::Nsys(window)
        }
        CaptureText::Command(command) => {
            let window = command.check(place, findings);
            command.record(&window, settings);
            CaptureSpec::Command(window)
        }
    }
}

impl CaptureText {
    /// As in YAML.
    const fn word(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Http(_) => "http",
            Self::Nsys(_) => "nsys",
            Self::CudaProfilerApi(_) => "cuda_profiler_api",
            Self::Command(_) => "command",
        }
    }
}

impl HttpText {
    fn check(&self, default: &CaptureSpec, findings: &mut Findings<'_>) -> HttpWindow {
        let base = match default {
            CaptureSpec::Http(http) => http.clone(),
            _ => HttpWindow::default(),
        };
        let until_cleared = self.until.get().map_or(base.until_cleared, |_| true);
        // The two belong together: whoever writes one does not inherit the other.
        let inherits = self.num_steps.get().is_none() && self.max_stall.get().is_none();
        let inherited = base.num_steps.filter(|_| inherits);
        let steps = inherited.map(|n| if until_cleared { n.max(100) } else { n });
        let window = HttpWindow {
            num_steps: self.num_steps.get().copied().or(steps),
            max_stall: self.max_stall.get().map(|s| s.0).or_else(|| base.max_stall.filter(|_| inherits)),
            max_stall_slow_host: self.max_stall_slow_host.get().map(|s| s.0).or(base.max_stall_slow_host),
            deadline: self.deadline.or(Span(base.deadline)).0,
            warmup: self.warmup.or(Span(base.warmup)).0,
            output_dir: self.output_dir.get().cloned().or(base.output_dir),
            activities: texts(&self.activities).or(base.activities),
            escalates: self.escalate.get().map_or(base.escalates, |order| order.contains(&Recording::Cpu)),
            with_stack: self.with_stack.or(base.with_stack),
            record_shapes: self.record_shapes.or(base.record_shapes),
            profile_by_stage: self.profile_by_stage.or(base.profile_by_stage),
            profile_stages: texts(&self.profile_stages).or(base.profile_stages),
            profile_prefix: self.profile_prefix.get().cloned().or(base.profile_prefix),
            profile_id: self.profile_id.get().cloned().or(base.profile_id),
            detailed_annotations: self.detailed_annotations.or(base.detailed_annotations),
            merge_profiles: self.merge_profiles.or(base.merge_profiles),
            start_step: self.start_step.get().copied().or(base.start_step),
            until_cleared,
            accept_risk: texts(&self.accept_risk).unwrap_or(base.accept_risk),
        };
        self.check_bounds(&window, findings);
        self.check_risks(&window, findings);
        window
    }

    fn check_bounds(&self, window: &HttpWindow, findings: &mut Findings<'_>) {
        self.check_steps(findings);
        self.check_escalation(window, findings);
        self.check_stalls(window, findings);
        self.check_first_windows(window, findings);
        self.check_times(findings);
        self.check_activities(window, findings);
        check_file_name(&self.profile_prefix, "profile_prefix", findings);
        check_file_name(&self.profile_id, "profile_id", findings);
        self.check_output_dir(findings);
    }

    fn check_steps(&self, findings: &mut Findings<'_>) {
        if let Some((steps, place)) = self.num_steps.placed()
            && !(1..=MAX_STEPS).contains(steps)
        {
            let hint = "write a number of them, or `max_stall: 300ms` in its place".to_owned();
            findings.error(place, format!("a window has 1 to {MAX_STEPS} steps"), Some(hint));
        }
    }

    fn check_stalls(&self, window: &HttpWindow, findings: &mut Findings<'_>) {
        check_span(&self.max_stall, "max_stall", MAX_STALL, findings);
        check_span(&self.max_stall_slow_host, "max_stall_slow_host", MAX_STALL, findings);
        if let (Some((slow, place)), Some(usual)) = (self.max_stall_slow_host.placed(), max_stall_of(window))
            && slow.0 <= usual
        {
            let message = format!("slow hosts are allowed {} anyway", Shown(usual));
            findings.warn(place, message, Some("write more than `max_stall`, or leave it out".into()));
        }
        if let (Some(steps), Some((stall, place))) = (window.num_steps, self.max_stall.placed()) {
            let predicted = before_the_first(window, steps);
            if predicted > stall.0 {
                let message = format!(
                    "{steps} steps are predicted to silence a rank for {}, so that no window opens before \
                     others of its server have cost less",
                    Shown(predicted)
                );
                // What the next check would refuse is no advice.
                let hint = match predicted <= MAX_STALL {
                    true => format!("leave `num_steps` out, or write `max_stall: {}`", written(predicted)),
                    false => "leave `num_steps` out".into(),
                };
                findings.warn(place, message, Some(hint));
            }
        }
    }

    /// Before anything was learned of a server, models of any size are possible.
    fn check_first_windows(&self, window: &HttpWindow, findings: &mut Findings<'_>) {
        if let Some((steps, place)) = self.num_steps.placed()
            && *steps <= MAX_STEPS
            && let Some(fewer) = fewer_before_the_first(window, *steps)
        {
            let message = format!(
                "before a server's first windows {steps} steps are refused on models of 32 layers and more, \
                 because the export might outlast the server's health check"
            );
            let hint = format!(
                "write `num_steps: {fewer}` or less, `max_stall: 1s` in its place, or `accept_risk: [server_timer]`"
            );
            findings.warn(place, message, Some(hint));
        }
    }

    fn check_times(&self, findings: &mut Findings<'_>) {
        check_span(&self.deadline, "deadline", MAX_DEADLINE, findings);
        if let Some((warmup, place)) = self.warmup.placed()
            && warmup.0 > Duration::from_secs(60)
        {
            findings.error(place, "a warmup of more than a minute captures something else", None);
        }
    }

    fn check_activities(&self, window: &HttpWindow, findings: &mut Findings<'_>) {
        for (value, place) in self.activities.get().into_iter().flatten().filter_map(|a| a.placed()) {
            let otherwise = "the server would answer 200 and record nothing";
            check_known(place, value, "activity", &ACTIVITIES, otherwise, findings);
        }
        if self.activities.get().is_some_and(Vec::is_empty) {
            let place = self.activities.place().unwrap_or_default();
            findings.error(
                place,
                "no activity: the window would record nothing",
                Some("leave it out".into()),
            );
        }
        if window.activities.as_ref().is_some_and(|a| a.len() > 1 && a.iter().any(|a| a == "CUDA_PROFILER")) {
            let place = self.activities.place().unwrap_or_default();
            let hint = "write `capture: { cuda_profiler_api: {} }`".to_owned();
            findings.error(place, "nsys and the torch profiler exclude each other", Some(hint));
        }
    }

    fn check_output_dir(&self, findings: &mut Findings<'_>) {
        if let Some((dir, place)) = self.output_dir.placed()
            && !dir.starts_with('/')
        {
            let message = format!(
                "`output_dir` is a folder as the server sees it, whose own folder nobody here knows: write an absolute path, not `{dir}`"
            );
            let hint =
                "where the agent sees that folder elsewhere, say so with `path_map` of the target".to_owned();
            findings.error(place, &message, Some(hint));
        }
    }

    fn check_escalation(&self, window: &HttpWindow, findings: &mut Findings<'_>) {
        let Some((order, place)) = self.escalate.placed() else { return };
        if !matches!(order[..], [Recording::Gpu] | [Recording::Gpu, Recording::Cpu]) {
            let hint = "write `escalate: [gpu, cpu]`, or leave it out".to_owned();
            findings.error(place, "GPU activity comes first, and CPU activity after it", Some(hint));
        } else if window.escalates
            && let Some(activities) = &window.activities
            && activities.iter().any(|a| a != "GPU")
        {
            let message =
                "the first window records more than GPU activity already, so there is never a second one";
            findings.warn(place, message.to_owned(), Some("take `activities` or `escalate` out".into()));
        }
    }

    fn check_risks(&self, window: &HttpWindow, findings: &mut Findings<'_>) {
        check_accepted(&self.accept_risk, findings);
        let accepts = |name: &str| window.accept_risk.iter().any(|r| r == name);
        let take_upon = |name: &str| Some(format!("take it out, or write `accept_risk: [{name}]`"));
        if let Some((true, place)) = self.with_stack.placed()
            && !accepts("with_stack")
        {
            let message = "stacks fill memory without bound, stretch the export and have crashed servers";
            findings.error(place, message, take_upon("with_stack"));
        }
        if let Some((true, place)) = self.profile_by_stage.placed()
            && !accepts("profile_by_stage")
        {
            let message =
                "windows by stage end early, late or never on a server that mixes prefill and decode";
            findings.error(place, message, take_upon("profile_by_stage"));
        }
        if let Some(place) = self.start_step.place()
            && !accepts("start_step")
        {
            let hint = "for \"wait, then start\" write `warmup: 2s`; to pass the number on all the same, \
                        `accept_risk: [start_step]`";
            findings.error(place, START_STEP, Some(hint.into()));
        }
    }
}

impl NsysText {
    fn check(&self, findings: &mut Findings<'_>) -> NsysWindow {
        check_accepted(&self.accept_risk, findings);
        let accept_risk = texts(&self.accept_risk).unwrap_or_default();
        let duration = self.duration.or(Span(Duration::from_millis(500))).0;
        if let Some(place) = self.duration.place() {
            if duration.is_zero() {
                findings.error(place, "a window has a length", None);
            } else if duration > MAX_NSYS && !accept_risk.iter().any(|r| r == "long_nsys") {
                let message = "a window of Nsight Systems has at most 5s: its report takes far longer than that to write";
                findings.error(
                    place,
                    message,
                    Some("shorten it, or write `accept_risk: [long_nsys]`".into()),
                );
            }
        }
        let session = match self.session.get().map(String::as_str) {
            None | Some("of_target") => NsysSession::OfTarget,
            Some(name) => NsysSession::Named(name.to_owned()),
        };
        NsysWindow { session, duration, args: texts(&self.args).unwrap_or_default(), accept_risk }
    }
}

impl CommandText {
    fn check(&self, place: Place, findings: &mut Findings<'_>) -> CommandWindow {
        let argv = texts(&self.argv).unwrap_or_default();
        if argv.is_empty() {
            let hint =
                "write the program and its arguments: `argv: [/usr/local/bin/snapshot, \"{incident}\"]`";
            findings.error(self.argv.place().unwrap_or(place), "no command to run", Some(hint.into()));
        }
        check_span(&self.time_limit, "time_limit", MAX_COMMAND, findings);
        let time_limit = self.time_limit.or(Span(Duration::from_secs(30))).0;
        CommandWindow { argv, time_limit }
    }
}

fn check_span(field: &Field<Span>, name: &str, most: Duration, findings: &mut Findings<'_>) {
    if let Some((span, place)) = field.placed()
        && (span.0.is_zero() || span.0 > most)
    {
        let hint = format!("write `{name}: {}` or less", Span(most));
        findings.error(place, format!("`{name}` is more than 0s and at most {}", Span(most)), Some(hint));
    }
}

fn check_known(
    place: Place,
    value: &str,
    what: &str,
    known: &[&str],
    why: &str,
    findings: &mut Findings<'_>,
) {
    if !known.contains(&value) {
        let hint = super::de::did_you_mean(value, known);
        findings.error(place, format!("unknown {what} `{value}`: {why}"), Some(hint));
    }
}

fn check_accepted(risks: &Field<Vec<Field<String>>>, findings: &mut Findings<'_>) {
    for (risk, place) in risks.get().into_iter().flatten().filter_map(Field::placed) {
        check_known(place, risk, "risk", &RISKS, "nothing would be accepted by it", findings);
    }
}

fn check_file_name(field: &Field<String>, name: &str, findings: &mut Findings<'_>) {
    if let Some((value, place)) = field.placed()
        && (value.is_empty()
            || value.len() > 128
            || !value.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)))
    {
        let message =
            format!("`{name}` becomes part of a file name: 1 to 128 letters, digits, `.`, `_` or `-`");
        findings.error(place, message, None);
    }
}

/// The valid texts of a list.
pub fn texts(field: &Field<Vec<Field<String>>>) -> Option<Vec<String>> {
    field.get().map(|items| items.iter().filter_map(Field::get).cloned().collect())
}

/// Records the settings of a capture that the file does not set.
fn record_default(spec: &CaptureSpec, settings: &mut Settings) {
    match spec {
        CaptureSpec::None => {}
        CaptureSpec::Http(window) => HttpText::default().record("http", window, settings),
        CaptureSpec::CudaProfilerApi(window) => {
            HttpText::default().record("cuda_profiler_api", window, settings);
        }
        CaptureSpec::Nsys(window) => NsysText::default().record(window, settings),
        CaptureSpec::Command(window) => CommandText::default().record(window, settings),
    }
}

fn listed(items: &[String]) -> String {
    if items.is_empty() { "none".into() } else { items.join(", ") }
}

impl HttpText {
    /// Records `window` under `means`. Settings that are not set here may come from the `http` of the
    /// including file.
    fn record(&self, means: &str, window: &HttpWindow, settings: &mut Settings) {
        let any = |text: Option<&String>| text.map_or_else(|| "none".to_owned(), Clone::clone);
        let list =
            |items: Option<&Vec<String>>, other: &str| items.map_or_else(|| other.to_owned(), |i| listed(i));
        let until = if window.until_cleared { "cleared" } else { "none" };
        let start_step = window.start_step.map_or_else(|| "none".into(), |s| s.to_string());
        let all: [(&str, String, Option<Place>); 19] = [
            (
                "output_dir",
                window.output_dir.clone().unwrap_or_else(|| "the server's own".into()),
                self.output_dir.place(),
            ),
            ("max_stall", stall_words(window), self.max_stall.place()),
            (
                "max_stall_slow_host",
                window.max_stall_slow_host.map_or_else(|| "as max_stall".into(), |s| Span(s).to_string()),
                self.max_stall_slow_host.place(),
            ),
            (
                "num_steps",
                window.num_steps.map_or_else(|| "as max_stall allows".into(), |n| n.to_string()),
                self.num_steps.place(),
            ),
            ("activities", list(window.activities.as_ref(), "GPU alone"), self.activities.place()),
            ("escalate", if window.escalates { "gpu, cpu" } else { "gpu" }.to_owned(), self.escalate.place()),
            ("with_stack", window.with_stack.to_string(), self.with_stack.place()),
            ("record_shapes", window.record_shapes.to_string(), self.record_shapes.place()),
            ("profile_by_stage", window.profile_by_stage.to_string(), self.profile_by_stage.place()),
            ("profile_stages", list(window.profile_stages.as_ref(), "both"), self.profile_stages.place()),
            ("profile_prefix", any(window.profile_prefix.as_ref()), self.profile_prefix.place()),
            (
                "profile_id",
                window.profile_id.clone().unwrap_or_else(|| "the incident's".into()),
                self.profile_id.place(),
            ),
            (
                "detailed_annotations",
                window.detailed_annotations.to_string(),
                self.detailed_annotations.place(),
            ),
            ("merge_profiles", window.merge_profiles.to_string(), self.merge_profiles.place()),
            ("start_step", start_step, self.start_step.place()),
            ("warmup", Span(window.warmup).to_string(), self.warmup.place()),
            ("until", until.to_owned(), self.until.place()),
            ("deadline", Span(window.deadline).to_string(), self.deadline.place()),
            ("accept_risk", listed(&window.accept_risk), self.accept_risk.place()),
        ];
        for (key, value, place) in all {
            let full = format!("capture.{means}.{key}");
            match place {
                Some(place) => settings.record_set(&full, value, place),
                None => settings.record_inherited(&full, value, &format!("capture.http.{key}")),
            }
        }
    }
}

/// What a window may cost; of steps that were asked for without a limit, what they are predicted to.
fn stall_words(window: &HttpWindow) -> String {
    match (max_stall_of(window), window.num_steps) {
        (Some(stall), _) => Span(stall).to_string(),
        (None, steps) => {
            let predicted = before_the_first(window, steps.unwrap_or_default());
            format!("none (predicted {} before the first window, with 32 layers)", Shown(predicted))
        }
    }
}

impl NsysText {
    /// Records `window`.
    fn record(&self, window: &NsysWindow, settings: &mut Settings) {
        let session = match &window.session {
            NsysSession::OfTarget => "of_target",
            NsysSession::Named(name) => name,
        };
        settings.record("capture.nsys.session", session, self.session.place());
        settings.record("capture.nsys.duration", Span(window.duration), self.duration.place());
        settings.record("capture.nsys.args", listed(&window.args), self.args.place());
        settings.record("capture.nsys.accept_risk", listed(&window.accept_risk), self.accept_risk.place());
    }
}

impl CommandText {
    /// Records `window`.
    fn record(&self, window: &CommandWindow, settings: &mut Settings) {
        settings.record("capture.command.argv", window.argv.join(" "), self.argv.place());
        settings.record("capture.command.time_limit", Span(window.time_limit), self.time_limit.place());
    }
}
