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
use crate::demo::shell::{self, RunningDouble, Stage};
use skewtrap_trace::time::Time;

/// How often the incident is played.
const TIMES: u32 = 16;

/// From its start, and from each repetition, until the skew begins.
pub const EVEN: Duration = Duration::from_secs((ONSET - BEGIN) as u64);
/// From one repetition to the next.
pub const PERIOD: Duration = Duration::from_secs((END - BEGIN) as u64);

/// Starts it on a local port, 0 for any, with its log in `dir` and its profiles in `dir/profiles`.
///
/// # Errors
/// The port is taken, the log cannot be written, or the recording is damaged.
pub async fn start(dir: &Path, port: u16, begin: Time) -> io::Result<RunningDouble> {
    let mut config = incident::config()?;
    config.recorded_log = config.recorded_log.map(|log| repeated(&log, begin, restamped));
    config.recorded_loads = config.recorded_loads.map(|loads| repeated(&loads, begin, shifted));
    config.default_output_dir = dir.join("profiles").to_string_lossy().into_owned();
    let log_path = dir.join("server.log");
    let stage = Stage { begin, speed: 1.0, log_path, port, end: Some(begin + PERIOD * TIMES) };
    shell::start(crate::demo::sglang::World::new(config, begin), stage).await
}

/// What was recorded, from `begin` on; `moved` makes the text one of its new time, later by so many seconds.
fn repeated(
    recorded: &[(Time, String)],
    begin: Time,
    moved: impl Fn(&str, Time, f64) -> String,
) -> Arc<[(Time, String)]> {
    let once = |round: u32| {
        let later_s = (begin + PERIOD * round).signed_s_since(Time::from_epoch_s(BEGIN));
        recorded.iter().map(move |(at, text)| (Time::from_epoch_s(at.epoch_s() + later_s), later_s, text))
    };
    let all = (0..TIMES).flat_map(once);
    all.map(|(at, later_s, text)| (at, moved(text, at, later_s))).collect()
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
    let Ok(mut page) = serde_json::from_str::<Value>(body) else { return body.to_owned() };
    page["timestamp"] = at.to_string().into();
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

    #[test]
    fn lines_and_pages_are_of_the_time_at_which_they_are_played_in_each_repetition() {
        let recorded = [(
            Time::from_epoch_s(BEGIN + 2.0),
            r#"{"timestamp":"2026-11-24T03:48:08Z","loads":[{"timestamp":1795492087.5,"dp_rank":0}]}"#
                .to_owned(),
        )];
        let begin = Time::from_epoch_s(2_000_000_000.0);
        let played = repeated(&recorded, begin, shifted);
        assert_eq!(played.len(), TIMES as usize);
        assert_eq!(played[1].0, begin + PERIOD + Duration::from_secs(2));
        let page: Value = serde_json::from_str(&played[0].1).expect("JSON");
        assert_eq!(page["loads"][0]["timestamp"], 2_000_000_001.5);
        let line = restamped("[2026-11-24 03:48:06 DP2] Prefill batch", begin, 0.0);
        assert!(line.starts_with("[2033-05-1") && line.ends_with(" DP2] Prefill batch"), "{line}");
    }
}
