//! The lines of SGLang's log, as each release prints them.

use crate::demo::load::RankLoad;
use crate::demo::sglang::config::{Config, Version};
use crate::demo::sglang::profile::Stage;
use skewtrap_trace::time::Time;

/// `[2026-11-24 03:48:53 DP2] ` for a rank, `[2026-11-24 03:48:53] ` for the main process.
pub fn prefix(config: &Config, at: Time, dp: Option<u16>) -> String {
    let ranks = dp.map_or_else(String::new, |dp| {
        let dp_word = if config.dp > 1 { format!(" DP{dp}") } else { String::new() };
        let tp = config.tp_ranks(dp).start;
        if config.tp > 1 { format!("{dp_word} TP{tp}") } else { dp_word }
    });
    format!("[{}{ranks}] ", stamp(at, config.log_ms && config.version >= Version::V0_5_9))
}

/// `2026-11-24 03:48:53`, with `.mmm` where asked. UTC: the double's zone.
fn stamp(at: Time, ms: bool) -> String {
    let Ok(t) = jiff::Timestamp::from_nanosecond(i128::from(at.nanos())) else {
        return "1970-01-01 00:00:00".into();
    };
    let format = if ms { "%Y-%m-%d %H:%M:%S.%3f" } else { "%Y-%m-%d %H:%M:%S" };
    t.strftime(format).to_string()
}

/// A report of decode batches.
pub fn decode(version: Version, load: RankLoad, usage: f64) -> String {
    let (stop, end) = (separator(version), if version == Version::V0_5_3 { ", " } else { "" });
    format!(
        "Decode batch{stop} #running-req: {}, #token: {}, token usage: {usage:.2}, cuda graph: True, gen throughput (token/s): {:.2}, #queue-req: {}{end}",
        load.running, load.tokens, load.throughput, load.waiting
    )
}

/// A report of one prefill batch with one new sequence.
pub fn prefill(version: Version, load: RankLoad, usage: f64, new_tokens: u32) -> String {
    let stop = separator(version);
    let begin = format!(
        "Prefill batch{stop} #new-seq: 1, #new-token: {new_tokens}, #cached-token: 0, token usage: {usage:.2}, #running-req: {}, #queue-req: {}",
        load.running.saturating_sub(1),
        load.waiting
    );
    let rate = f64::from(new_tokens) * 5.0;
    match version {
        Version::V0_4_7 => begin,
        Version::V0_5_3 => format!("{begin}, "),
        Version::V0_5_9 => format!("{begin}, input throughput (token/s): {rate:.2}, cuda graph: False"),
        Version::V0_5_16 | Version::V0_5_23 => {
            format!("{begin}, #pending-token: 0, cuda graph: False, input throughput (token/s): {rate:.2}")
        }
    }
}

fn separator(version: Version) -> char {
    if version >= Version::V0_5_9 { ',' } else { '.' }
}

/// The line for a window that opens.
pub fn starts(version: Version, stage: Option<Stage>, dir: &str, id: &str) -> String {
    let stage = match stage {
        Some(s) => format!(" for {}", s.word()),
        None if version == Version::V0_4_7 => " for True".into(),
        None => String::new(),
    };
    format!("Profiling starts{stage}. Traces will be saved to: {dir} (with profile id: {id})")
}

/// The line for a window that closes.
pub fn stops(stage: Option<Stage>) -> String {
    format!("Stop profiling{}...", stage.map_or_else(String::new, |s| format!("-{}", s.word())))
}

/// An access line of uvicorn.
pub fn access(port: u16, method: &str, target: &str, status: u16, reason: &str) -> String {
    format!("INFO:     127.0.0.1:{port} - \"{method} {target} HTTP/1.1\" {status} {reason}")
}

/// What the exception of a scheduler leaves in the log before the main process kills all others.
pub fn scheduler_exception(error: &str) -> String {
    format!(
        "Scheduler hit an exception: Traceback (most recent call last):\n  File \"/opt/site/sglang/srt/managers/scheduler.py\", line 3342, in run_scheduler_process\n    scheduler.event_loop_overlap()\n{error}\n"
    )
}

/// The line of the main process after a scheduler died.
pub const fn sigquit(version: Version) -> &'static str {
    match version {
        Version::V0_4_7 | Version::V0_5_3 => {
            "Received sigquit from a child process. It usually means the child failed."
        }
        _ => "SIGQUIT received. signum=None, frame=None. It usually means one child failed.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::load::LoadTrack;

    #[test]
    fn lines_look_as_each_release_prints_them() {
        let load = RankLoad { running: 7, waiting: 1, tokens: 2918, throughput: 4247.78 };
        insta::assert_snapshot!(decode(Version::V0_5_3, load, 0.01), @"Decode batch. #running-req: 7, #token: 2918, token usage: 0.01, cuda graph: True, gen throughput (token/s): 4247.78, #queue-req: 1,");
        insta::assert_snapshot!(decode(Version::V0_5_16, load, 0.01), @"Decode batch, #running-req: 7, #token: 2918, token usage: 0.01, cuda graph: True, gen throughput (token/s): 4247.78, #queue-req: 1");
        insta::assert_snapshot!(prefill(Version::V0_4_7, load, 0.01, 322), @"Prefill batch. #new-seq: 1, #new-token: 322, #cached-token: 0, token usage: 0.01, #running-req: 6, #queue-req: 1");
        insta::assert_snapshot!(prefill(Version::V0_5_16, load, 0.01, 322), @"Prefill batch, #new-seq: 1, #new-token: 322, #cached-token: 0, token usage: 0.01, #running-req: 6, #queue-req: 1, #pending-token: 0, cuda graph: False, input throughput (token/s): 1610.00");
        insta::assert_snapshot!(starts(Version::V0_4_7, None, "/d", "1.5"), @"Profiling starts for True. Traces will be saved to: /d (with profile id: 1.5)");
    }

    #[test]
    fn a_rank_is_named_only_on_the_axes_that_have_more_than_one() {
        let at = Time::from_epoch_s(1_795_492_133.316_9);
        let mut config = Config::new(Version::V0_5_16, 4, LoadTrack::default());
        assert_eq!(prefix(&config, at, Some(2)), "[2026-11-24 03:48:53 DP2] ");
        assert_eq!(prefix(&config, at, None), "[2026-11-24 03:48:53] ");
        (config.tp, config.dp_attention, config.log_ms) = (8, true, true);
        assert_eq!(prefix(&config, at, Some(2)), "[2026-11-24 03:48:53.316 DP2 TP4] ");
    }
}
