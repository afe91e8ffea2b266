//! Every setting of a capture with its value and where it came from.

use super::{CommandText, HttpText, NsysText};
use crate::config::effective::Settings;
use crate::config::quantity::Span;
use crate::config::tree::Place;
use skewtrap_core::capture::{CaptureSpec, CommandWindow, HttpWindow, NsysSession, NsysWindow};

/// Notes what is captured where nothing is said of it.
pub(super) fn note_default(spec: &CaptureSpec, settings: &mut Settings) {
    match spec {
        CaptureSpec::None => {}
        CaptureSpec::Http(window) => HttpText::default().note("http", window, settings),
        CaptureSpec::CudaProfilerApi(window) => {
            HttpText::default().note("cuda_profiler_api", window, settings);
        }
        CaptureSpec::Nsys(window) => NsysText::default().note(window, settings),
        CaptureSpec::Command(window) => CommandText::default().note(window, settings),
    }
}

fn listed(items: &[String]) -> String {
    if items.is_empty() { "none".into() } else { items.join(", ") }
}

impl HttpText {
    /// Notes `window` below `means`; what is not said here was perhaps said of `http` elsewhere.
    pub(super) fn note(&self, means: &str, window: &HttpWindow, settings: &mut Settings) {
        let any = |text: Option<&String>| text.map_or_else(|| "none".to_owned(), Clone::clone);
        let list =
            |items: Option<&Vec<String>>, other: &str| items.map_or_else(|| other.to_owned(), |i| listed(i));
        let until = if window.until_cleared { "cleared" } else { "none" };
        let start_step = window.start_step.map_or_else(|| "none".into(), |s| s.to_string());
        let all: [(&str, String, Option<Place>); 16] = [
            (
                "output_dir",
                window.output_dir.clone().unwrap_or_else(|| "the server's own".into()),
                self.output_dir.place(),
            ),
            ("num_steps", window.num_steps.to_string(), self.num_steps.place()),
            ("activities", list(window.activities.as_ref(), "what is safe"), self.activities.place()),
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
                Some(place) => settings.given(&full, value, place),
                None => settings.inherited(&full, value, &format!("capture.http.{key}")),
            }
        }
    }
}

impl NsysText {
    /// Notes `window`.
    pub(super) fn note(&self, window: &NsysWindow, settings: &mut Settings) {
        let session = match &window.session {
            NsysSession::OfTarget => "of_target",
            NsysSession::Named(name) => name,
        };
        settings.note("capture.nsys.session", session, self.session.place());
        settings.note("capture.nsys.duration", Span(window.duration), self.duration.place());
        settings.note("capture.nsys.args", listed(&window.args), self.args.place());
        settings.note("capture.nsys.accept_risk", listed(&window.accept_risk), self.accept_risk.place());
    }
}

impl CommandText {
    /// Notes `window`.
    pub(super) fn note(&self, window: &CommandWindow, settings: &mut Settings) {
        settings.note("capture.command.argv", window.argv.join(" "), self.argv.place());
        settings.note("capture.command.time_limit", Span(window.time_limit), self.time_limit.place());
    }
}
