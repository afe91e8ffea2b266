//! Admission: whether a capture request is granted, and what exactly is then to be done.

use std::time::Duration;

use crate::amount::Span;
use crate::capture::captured::CaptureKind;
use crate::capture::facts::Facts;
use crate::capture::governor::{self, Attempt, Budget, CaptureRequest, Ledger};
use crate::capture::keep::BundleSpace;
use crate::capture::plan::{StartRequest, WindowNaming, plan};
use crate::capture::preflight::{self, Need};
use crate::capture::refusal::Refusal;
use crate::capture::sizing::{Sizing, SizingInputs};
use crate::capture::{CaptureSpec, CommandWindow, HttpWindow, NsysWindow};
use skewtrap_trace::time::Time;

/// An nsys window is no longer than this.
pub const MAX_NSYS: Duration = Duration::from_secs(5);

/// What holds for every capture of an agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// What a day may cost.
    pub budget: Budget,
    /// Bytes that must stay free on every disk involved.
    pub min_free: u64,
    /// `capture.output_dir`, server's view.
    pub output_dir: Option<String>,
    /// `--watch-only`.
    pub watch_only: bool,
    /// The state could not be read yet, so the ledger is not what counts.
    pub awaits_state: bool,
    /// What the bundles take; `None` before the first sweep.
    pub bundles: Option<BundleSpace>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            budget: Budget::default(),
            min_free: 2 << 30,
            output_dir: None,
            watch_only: false,
            awaits_state: false,
            bundles: None,
        }
    }
}

/// A capture request that was granted. The attempt is written to the state before anything is done.
#[derive(Clone, Debug, PartialEq)]
pub struct CapturePlan {
    /// For the state.
    pub attempt: Attempt,
    /// What to do.
    pub method: CaptureMethod,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum CaptureMethod {
    /// Start a window of the engine's own profiler.
    Http(StartRequest),
    /// Start a collection of an Nsight Systems session.
    Nsys(NsysWindow),
    /// Run a program.
    Command(CommandWindow),
}

impl CaptureMethod {
    /// By what it captures.
    pub const fn means(&self) -> CaptureKind {
        match self {
            Self::Http(request) => request.means(),
            Self::Nsys(_) => CaptureKind::Nsys,
            Self::Command(_) => CaptureKind::Command,
        }
    }

    /// How large it is, what it is predicted to cost, and what it cannot show.
    pub fn expects(&self) -> Option<String> {
        match self {
            Self::Http(request) => request.sizing.as_deref().map(Sizing::expectation),
            Self::Nsys(nsys) => Some(format!(
                "{} of collection; nsys writes its report outside the ranks, and 1.8 s of silence at most was seen",
                Span(nsys.duration)
            )),
            Self::Command(_) => None,
        }
    }
}

/// Whether a request is the first of what fires, or the second window that its first one asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// All limits hold.
    First,
    /// See [`governor::decide_follow_up`].
    FollowUp,
}

/// Decides on one request. `Ok(None)` when the rule captures nothing. `slowness` is how many times slower
/// than usual the host of the server's slowest rank is, where anybody knows.
///
/// # Errors
/// Why no window may open now.
pub fn admit(
    spec: &CaptureSpec,
    request: &CaptureRequest<'_>,
    ledger: &Ledger,
    facts: &Facts,
    policy: &Policy,
    slowness: Option<f64>,
    now: Time,
) -> Result<Option<CapturePlan>, Refusal> {
    admit_request(RequestKind::First, spec, request, ledger, facts, policy, slowness, now)
}

/// See [`admit`].
///
/// # Errors
/// Why no window may open now.
pub fn admit_request(
    kind: RequestKind,
    spec: &CaptureSpec,
    request: &CaptureRequest<'_>,
    ledger: &Ledger,
    facts: &Facts,
    policy: &Policy,
    slowness: Option<f64>,
    now: Time,
) -> Result<Option<CapturePlan>, Refusal> {
    if *spec == CaptureSpec::None {
        return Ok(None);
    }
    if policy.watch_only {
        return Err(Refusal::WatchOnly);
    }
    if policy.awaits_state {
        return Err(Refusal::StateDisk);
    }
    let ranks = facts.server.as_ref().map_or(1, |s| match s.engine.reports_its_sizes() {
        true => usize::from(s.sizes.dp) * usize::from(s.sizes.tp),
        false => preflight::ranks_of(facts, s, now).len(),
    });
    let expected = ledger.estimate(request.target, ranks);
    match kind {
        RequestKind::First => governor::decide(request, ledger, &policy.budget, expected, now)?,
        RequestKind::FollowUp => governor::decide_follow_up(request, ledger, &policy.budget, expected, now)?,
    }
    if let Some(bundles) = &policy.bundles {
        bundles.admits(expected.bytes)?;
    }
    // A command may do anything, also to a server that says nothing of itself: only limits hold.
    if let CaptureSpec::Command(command) = spec {
        return Ok(Some(grant(request, ledger, CaptureMethod::Command(command.clone()), now)));
    }
    preflight::server(facts)?;
    preflight::progress(facts)?;
    preflight::check(facts, Need { bytes: expected.bytes, floor: policy.min_free }, now)?;
    let mark = attempt_of(request, ledger, now).mark();
    let naming = WindowNaming { mark: &mark, output_dir: policy.output_dir.as_deref() };
    let costs = facts.server.as_ref().map(|s| ledger.costs(request.target, s.fingerprint(), now));
    let known = SizingInputs { costs: costs.unwrap_or_default(), slowness };
    let method = match spec {
        CaptureSpec::Http(http) => CaptureMethod::Http(plan(http, facts, &known, naming, now)?),
        CaptureSpec::CudaProfilerApi(http) => {
            CaptureMethod::Http(plan(&cuda_profiler(http), facts, &known, naming, now)?)
        }
        CaptureSpec::Nsys(nsys) => nsys_bounds(nsys).map(|()| CaptureMethod::Nsys(nsys.clone()))?,
        CaptureSpec::Command(_) | CaptureSpec::None => return Ok(None),
    };
    Ok(Some(grant(request, ledger, method, now)))
}

fn grant(request: &CaptureRequest<'_>, ledger: &Ledger, method: CaptureMethod, now: Time) -> CapturePlan {
    CapturePlan { attempt: attempt_of(request, ledger, now), method }
}

/// The attempt that a granted request makes: numbered within its incident.
pub fn attempt_of(request: &CaptureRequest<'_>, ledger: &Ledger, now: Time) -> Attempt {
    let before = ledger.attempts.iter().filter(|a| a.incident == request.incident).count();
    Attempt {
        id: format!("{}/{}", request.incident, before + 1),
        rule: request.rule.to_owned(),
        target: request.target.to_owned(),
        group: request.group.to_owned(),
        incident: request.incident.to_owned(),
        firing: request.firing.to_owned(),
        at: now,
        times_bound: request.times_bound,
        over_at: None,
        end: None,
    }
}

fn cuda_profiler(http: &HttpWindow) -> HttpWindow {
    HttpWindow { activities: Some(vec!["CUDA_PROFILER".into()]), ..http.clone() }
}

/// Bounds of an nsys window, known when a rule is read.
///
/// # Errors
/// It is longer than [`MAX_NSYS`] and that was not accepted, or has no length.
pub fn nsys_bounds(nsys: &NsysWindow) -> Result<(), Refusal> {
    if nsys.duration.is_zero() {
        let why = "an nsys window has no other bound".into();
        return Err(Refusal::Never { what: "duration: 0s".into(), why });
    }
    if nsys.duration > MAX_NSYS && !nsys.accept_risk.iter().any(|r| r == "long_nsys") {
        return Err(Refusal::Risk {
            what: format!("an nsys window of {}", Span(nsys.duration)),
            why: "a window of 2 s has made a report of 2 GB and a stop of 89 s",
            name: "long_nsys",
        });
    }
    Ok(())
}

/// What is wrong with a capture whatever the server: for the checks when a rule is read.
///
/// # Errors
/// The first setting that is refused on every server.
pub fn check(spec: &CaptureSpec) -> Result<(), Refusal> {
    match spec {
        CaptureSpec::None => Ok(()),
        CaptureSpec::Http(http) => super::risk::bounds(http),
        CaptureSpec::CudaProfilerApi(http) => super::risk::bounds(&cuda_profiler(http)),
        CaptureSpec::Nsys(nsys) => nsys_bounds(nsys),
        CaptureSpec::Command(command) if command.argv.is_empty() => Err(Refusal::Never {
            what: "command: { argv: [] }".into(),
            why: "there is nothing to run".into(),
        }),
        CaptureSpec::Command(command) if command.time_limit.is_zero() => Err(Refusal::Never {
            what: "command: { time_limit: 0s }".into(),
            why: "every window has a bound in time; give it one".into(),
        }),
        CaptureSpec::Command(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Limits;

    fn decided(spec: &CaptureSpec, policy: &Policy) -> Result<Option<CapturePlan>, String> {
        let limits =
            Limits { cooldown: Duration::from_secs(600), captures: 4, per: Duration::from_secs(86_400) };
        let (rule, target, incident) = ("r", "t", "i1");
        let (firing, may_predate_start, times_bound) = ("", false, 1.5);
        let request = CaptureRequest {
            rule,
            limits: &limits,
            target,
            group: "t",
            incident,
            firing,
            may_predate_start,
            times_bound,
        };
        let now = Time::from_epoch_s(1000.0);
        admit(spec, &request, &Ledger::default(), &Facts::default(), policy, None, now)
            .map_err(|r| r.word().to_owned())
    }

    #[test]
    fn what_captures_nothing_is_no_refusal_and_watch_only_refuses_the_rest() {
        let watch_only = Policy { watch_only: true, ..Policy::default() };
        let http = CaptureSpec::Http(HttpWindow::default());
        assert_eq!(decided(&CaptureSpec::None, &watch_only), Ok(None));
        assert_eq!(decided(&http, &watch_only), Err("watch_only".into()));
        assert_eq!(decided(&http, &Policy::default()), Err("unknown_server".into()));
    }

    #[test]
    fn a_command_needs_no_facts_about_the_server() {
        let command = CommandWindow { argv: vec!["true".into()], time_limit: Duration::from_secs(1) };
        let grant = decided(&CaptureSpec::Command(command), &Policy::default()).unwrap().unwrap();
        assert_eq!(grant.attempt.id, "i1/1");
    }

    #[test]
    fn what_may_not_be_deleted_is_named_and_blocks_new_captures_when_there_is_no_room() {
        let command = CommandWindow { argv: vec!["true".into()], time_limit: Duration::from_secs(1) };
        let space = BundleSpace { bytes: 60 << 30, limit: 50 << 30, over: true, ..BundleSpace::default() };
        let stuck = Some("/data/incidents/old: Permission denied".to_owned());
        let policy = Policy { bundles: Some(BundleSpace { stuck, ..space }), ..Policy::default() };
        assert_eq!(decided(&CaptureSpec::Command(command), &policy), Err("keep_full".into()));
        let message = policy.bundles.unwrap().admits(64 << 20).unwrap_err().to_string();
        assert!(message.contains("60 GiB that may not be deleted (/data/incidents/old: Permission denied)"));
        assert!(BundleSpace::default().admits(u64::MAX).is_ok());
    }

    #[test]
    fn a_long_nsys_window_is_refused_until_it_is_accepted() {
        let window = NsysWindow {
            session: crate::capture::NsysSession::OfTarget,
            duration: Duration::from_secs(6),
            args: Vec::new(),
            accept_risk: Vec::new(),
        };
        assert_eq!(check(&CaptureSpec::Nsys(window.clone())).unwrap_err().word(), "risk");
        let accepted = NsysWindow { accept_risk: vec!["long_nsys".into()], ..window };
        assert_eq!(check(&CaptureSpec::Nsys(accepted)), Ok(()));
    }
}
