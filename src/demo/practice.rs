//! A server to practise on, for `skewtrap demo --server`: the recorded incident in real time, as if it
//! happened now, again and again.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use crate::demo::incident::{self, BEGIN, END, ONSET};
use crate::demo::load::LoadTrack;
use crate::demo::sglang::{Config, World};
use crate::demo::shell::{self, RunningDouble, Stage};
use skewtrap_trace::time::Time;

/// How often the incident is played.
const TIMES: u32 = 9;
/// How often its beginning, in which all is even, is played before it: time to start an agent and to let it learn.
const BEGINNINGS: u32 = 3;

/// The recording until its onset, and to its end.
const BEFORE_ONSET: Duration = Duration::from_secs((ONSET - BEGIN) as u64);
const WHOLE: Duration = Duration::from_secs((END - BEGIN) as u64);
/// From the start, and from each repetition, until the skew begins.
pub const EVEN: Duration = Duration::from_secs(BEFORE_ONSET.as_secs() * BEGINNINGS as u64);
/// From one repetition to the next.
pub const PERIOD: Duration = Duration::from_secs(EVEN.as_secs() - BEFORE_ONSET.as_secs() + WHOLE.as_secs());

/// Starts it on a local port, 0 for any, with its log in `dir` and its profiles in `dir/profiles`.
///
/// # Errors
/// The port is taken, the log cannot be written, or the recording is damaged.
pub async fn start(dir: &Path, port: u16, begin: Time) -> io::Result<RunningDouble> {
    let config = config(dir, begin)?;
    let log_path = dir.join("server.log");
    let stage = Stage { begin, speed: 1.0, log_path, port, end: Some(begin + PERIOD * TIMES) };
    shell::start(World::new(config, begin), stage).await
}

fn config(dir: &Path, begin: Time) -> io::Result<Config> {
    let mut config = incident::config()?;
    config.recorded_log = config.recorded_log.map(|log| repeated(&log, begin, restamped));
    if let Some(loads) = config.recorded_loads {
        let loads = repeated(&loads, begin, shifted);
        // `/metrics` is made of the load itself.
        config.load = LoadTrack::answers(&loads)?;
        config.recorded_loads = Some(loads);
    }
    config.default_output_dir = dir.join("profiles").to_string_lossy().into_owned();
    Ok(config)
}

/// The pieces of the recording in the order in which they are played: when each begins, after the start, and how
/// much of the recording it is.
fn pieces() -> impl Iterator<Item = (Duration, Duration)> {
    (0..TIMES).flat_map(|round| {
        let start = PERIOD * round;
        let beginnings = (1..BEGINNINGS).map(move |n| (start + BEFORE_ONSET * (n - 1), BEFORE_ONSET));
        beginnings.chain([(start + BEFORE_ONSET * (BEGINNINGS - 1), WHOLE)])
    })
}

/// What was recorded, from `begin` on; `moved` makes the text one of its new time, later by so many seconds.
fn repeated(
    recorded: &[(Time, String)],
    begin: Time,
    moved: impl Fn(&str, Time, f64) -> String,
) -> Arc<[(Time, String)]> {
    let piece = |(start, length): (Duration, Duration)| {
        let first = Time::from_epoch_s(BEGIN);
        let later_s = (begin + start).signed_s_since(first);
        let played = recorded.iter().filter(move |(at, _)| at.since(first) < length);
        played.map(move |(at, text)| (Time::from_epoch_s(at.epoch_s() + later_s), later_s, text))
    };
    pieces().flat_map(piece).map(|(at, later_s, text)| (at, moved(text, at, later_s))).collect()
}

/// A line of SGLang's log, with the local time at its beginning, as SGLang writes it.
fn restamped(line: &str, at: Time, _later_s: f64) -> String {
    const STAMP: usize = "[2026-11-24 03:48:06".len();
    match (line.starts_with('['), line.get(STAMP..), Timestamp::from_nanosecond(i128::from(at.nanos()))) {
        (true, Some(rest), Ok(now)) => {
            format!("[{}{rest}", now.to_zoned_datetime(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S"))
        }
        _ => line.to_owned(),
    }
}

/// An answer of `/v1/loads`, with the times of its ranks' numbers.
fn shifted(body: &str, at: Time, later_s: f64) -> String {
    let Ok(mut page) = serde_json::from_slice::<Value>(body.as_bytes()) else { return body.to_owned() };
    page["timestamp"] = at.rfc3339().into();
    for rank in page["loads"].as_array_mut().into_iter().flatten() {
        if let Some(time) = rank["timestamp"].as_f64() {
            rank["timestamp"] = (time + later_s).into();
        }
    }
    page.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::exchange::{Effect, Outcome, Request};

    /// The running requests of each rank, by `/v1/loads` and by `/metrics`.
    fn running(world: &mut World, at: Time) -> (Vec<f64>, Vec<f64>) {
        let mut now = at;
        let mut page = |path: &str| {
            let (_, mut effects) = world.request(now, &Request::get(path));
            now = now + Duration::from_secs(1);
            effects.extend(world.advance(now));
            let answer = effects.into_iter().find_map(|effect| match effect {
                Effect::Done { outcome: Outcome::Answer(answer), .. } => Some(answer.body_text()),
                _ => None,
            });
            answer.expect("a page is answered within a second")
        };
        let loads: Value = serde_json::from_str(&page("/v1/loads")).expect("JSON");
        let loads = loads["loads"].as_array().expect("ranks").iter();
        let loads = loads.map(|rank| rank["num_running_reqs"].as_f64().expect("a number")).collect();
        let metrics = page("/metrics");
        let lines = metrics.lines().filter(|line| line.starts_with("sglang:num_running_reqs{"));
        (loads, lines.map(|line| line.rsplit(' ').next().unwrap().parse().expect("a number")).collect())
    }

    #[test]
    fn loads_and_metrics_tell_of_one_load_before_and_during_the_skew_in_each_repetition() {
        let begin = Time::from_epoch_s(2_000_000_000.0);
        let mut world = World::new(config(Path::new("/nowhere"), begin).expect("the recording"), begin);
        for round in 0..2 {
            let (before, during) = (EVEN - Duration::from_secs(8), EVEN + Duration::from_secs(40));
            for (after, is_skewed) in [(before, false), (during, true)] {
                let (loads, metrics) = running(&mut world, begin + PERIOD * round + after);
                let share = |ranks: &[f64]| ranks[2] / ranks.iter().sum::<f64>();
                assert_eq!((loads.len(), metrics.len()), (4, 4));
                assert_eq!(share(&loads) > 0.6, is_skewed, "{loads:?}");
                assert_eq!(share(&metrics) > 0.6, is_skewed, "{metrics:?}");
                if is_skewed {
                    // Each rank reports every 40 batches, so that its gauges are somewhat older than its load.
                    assert!((share(&loads) - share(&metrics)).abs() < 0.1, "{loads:?} {metrics:?}");
                    assert!((loads[2] - metrics[2]).abs() < 0.2 * loads[2], "{loads:?} {metrics:?}");
                }
            }
        }
    }

    #[test]
    fn lines_and_pages_are_of_the_time_at_which_they_are_played_in_each_repetition() {
        let page = |at: f64| {
            let body = format!(r#"{{"timestamp":"x","loads":[{{"timestamp":{},"dp_rank":0}}]}}"#, at - 0.5);
            (Time::from_epoch_s(at), body)
        };
        let recorded = [page(BEGIN + 2.0), page(ONSET + 2.0)];
        let begin = Time::from_epoch_s(2_000_000_000.0);
        let played = repeated(&recorded, begin, shifted);
        let after: Vec<u64> = played.iter().map(|(at, _)| at.since(begin).as_secs()).collect();
        assert_eq!(after.len(), (TIMES * (BEGINNINGS + 1)) as usize);
        assert_eq!(after[..5], [2, 37, 72, 107, PERIOD.as_secs() + 2], "even three times, then the skew");
        let page: Value = serde_json::from_str(&played[0].1).expect("JSON");
        assert_eq!(page["loads"][0]["timestamp"], 2_000_000_001.5);
        let line = restamped("[2026-11-24 03:48:06 DP2] Prefill batch", begin, 0.0);
        assert!(line.starts_with("[2033-05-1") && line.ends_with(" DP2] Prefill batch"), "{line}");
    }
}
