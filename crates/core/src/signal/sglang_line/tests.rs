//! One line of each variant that the versions print, and the signals it must give.

use super::*;

/// A line as one row: stamp, rank, meaning and numbers.
fn shown(line: &str) -> String {
    let mut fields = Fields::default();
    let read = read(line.as_bytes(), &mut fields);
    let stamp = match read.stamp {
        Some(s) => {
            String::from_utf8_lossy(&s.civil[11..]).into_owned()
                + &s.millis.map_or(String::new(), |m| format!(".{m:03}"))
        }
        None => "-".to_owned(),
    };
    let values: Vec<_> = fields.iter().map(|(s, v)| format!("{}={v}", catalog::name_of(s))).collect();
    let content = match &read.content {
        LineContent::Batch(b) if b.unknown > 0 => format!("{:?}({} unknown)", b.kind, b.unknown),
        LineContent::Batch(b) => format!("{:?}", b.kind),
        LineContent::Profile(p) => format!("{p:?}"),
        LineContent::Fatal(text) => format!("Fatal({})", String::from_utf8_lossy(text)),
        other => format!("{other:?}"),
    };
    format!("{stamp} {} {content} {}", read.rank, values.join(" ")).trim_end().to_owned()
}

fn rows(lines: &[&str]) -> String {
    lines.iter().map(|l| shown(l)).collect::<Vec<_>>().join("\n")
}

#[test]
fn decode_lines_of_every_version_give_their_signals() {
    insta::assert_snapshot!(rows(&[
        // 0.4.7
        "[2025-07-01 10:00:00 DP1 TP0] Decode batch. #running-req: 3, #token: 500, token usage: 0.01, cuda graph: True, gen throughput (token/s): 120.50, #queue-req: 2",
        // 0.4.10 to 0.5.3
        "[2025-08-01 10:00:00 DP1 TP0 EP0] Decode batch. #running-req: 3, #token: 500, token usage: 0.01, cuda graph: True, gen throughput (token/s): 120.50, #queue-req: 2, ",
        "[2025-08-01 10:00:00 DP0] Decode batch. #running-req: 3, #full token: 500, full token usage: 0.30, #swa token: 40, swa token usage: 0.45, cuda graph: False, gen throughput (token/s): 12.00, #queue-req: 0, ",
        "[2025-08-01 10:00:00] Decode batch. #running-req: 3, #token: 500, token usage: 0.01, accept len: 2.31, cuda graph: True, gen throughput (token/s): 1.00, #queue-req: 0, ",
        "[2025-09-01 10:00:00 TP0] Decode batch. #running-req: 1, #token: 5, token usage: 0.00, pre-allocated usage: 0.12, #prealloc-req: 4, #transfer-req: 5, #retracted-req: 1, cuda graph: True, gen throughput (token/s): 1.00, #queue-req: 0, ",
        "[2025-09-01 10:00:00] Decode batch. #running-req: 1, #token: 5, token usage: 0.00, cpu graph: False, gen throughput (token/s): 1.00, #queue-req: 0, ",
        // 0.5.5
        "[2025-11-01 10:00:00 DP3 TP3 EP3] Decode batch, #running-req: 7, #full token: 800, full token usage: 0.20, mamba num: 14, mamba usage: 0.33, accept len: 2.50, accept rate: 0.63, cuda graph: True, gen throughput (token/s): 1.00, #queue-req: 0, ",
        "[2025-11-01 10:00:00.123 DP3 PP1 TP3 EP3] Decode batch [1234], #running-req: 7, #token: 8, token usage: 0.20, npu graph: True, gen throughput (token/s): 1.00, #queue-req: 6, ",
        // 0.5.9
        "[2026-01-01 10:00:00.007 DP9 PP1 ATTN_CP2 MOE_DP3 TP4 EP5] Decode batch, #running-req: 7, #token: 8, token usage: 0.20, waiting-image-req: 3, cuda graph: True, gen throughput (token/s): 1.00, #queue-req: 6",
        // 0.5.10 to 0.5.16
        "[2026-03-17 17:35:07 DP9 TP9] Decode batch, #running-req: 12, #full token: 8, full token usage: 0.20, #swa token: 4, swa token usage: 0.10, mamba num: 2, mamba usage: 0.50, cuda graph: True, gen throughput (token/s): 1.00, #queue-req: 6, est. decode TFLOPS/s (per GPU): 101.50, est. read BW (GB/s per GPU): 2000.25, est. write BW (GB/s per GPU): 30.00",
        "[2026-05-01 10:00:00 DP0] Decode batch, #running-req: 2, #gpu token: 9, gpu token usage: 0.40, #cpu token: 90, cpu token usage: 0.70, musa graph: True, gen throughput (token/s): 1.00, #queue-req: 0, fwd occupancy: 91.2%",
        "[2026-07-01 10:00:00 DP0] Decode batch, #running-req: 2, #token: 9, token usage: 0.40, accept len: 3.10, accept rate: 0.70, cap len: 4.00, block accept len: 1.20, cuda graph: True, gen throughput (token/s): 1.00, #queue-req: 0",
        // 0.5.23
        "[2026-11-24 03:48:06 DP2] Decode batch, #running-req: 4, #token: 674, token usage: 0.00, pre-allocated usage: 0.01, #prealloc-req: 1, #transfer-req: 2, #host-receive-req: 3, #retracted-req: 4, cuda graph: True, gen throughput (token/s): 2.03, #queue-req: 0, fwd occupancy: 80.00%, fwd+idle occupancy: 85.50%",
    ]));
}

#[test]
fn prefill_lines_of_every_version_give_their_signals() {
    insta::assert_snapshot!(rows(&[
        // 0.4.7
        "[2025-07-01 10:00:00 TP0] Prefill batch. #new-seq: 2, #new-token: 300, #cached-token: 20, token usage: 0.10, #running-req: 5, #queue-req: 1",
        "[2025-07-01 10:00:00 TP0] Prefill batch. #new-seq: 2, #new-token: 300, #cached-token: 20, token usage: 0.10, #unbootstrapped-req: 3, #queue-req: 1, #transferring-req: 4, input throughput (token/s): 812.50 ",
        // 0.5.3
        "[2025-09-01 10:00:00 DP0 TP0] Prefill batch. #new-seq: 2, #new-token: 300, #cached-token: 20, full token usage: 0.10, swa token usage: 0.30, #running-req: 5, #queue-req: 1, #prealloc-req: 6, #inflight-req: 7, ",
        // 0.5.5 to 0.5.7
        "[2025-11-01 10:00:00 DP0] Prefill batch [77], #new-seq: 2, #new-token: 300, #cached-token: 20, token usage: 0.10, #running-req: 5, #queue-req: 1, #prealloc-req: 6, #inflight-req: 7, input throughput (token/s): 100.00, ",
        // 0.5.9
        "[2026-01-01 10:00:00 DP0] Prefill batch, #new-seq: 2, #new-token: 300, #cached-token: 20, full token usage: 0.10, mamba usage: 0.20, #running-req: 5, #queue-req: 1, input throughput (token/s): 100.00, waiting-image-req: 2, cuda graph: False",
        // 0.5.10
        "[2026-02-01 10:00:00 DP0] Prefill batch, #new-seq: 2, #new-token: 300, #cached-token: 20, token usage: 0.10, #running-req: 5, #queue-req: 1, cuda graph: False, input throughput (token/s): 100.00, est. prefill TFLOPS/s (per GPU): 55.50",
        // 0.5.11 and 0.5.12
        "[2026-05-01 10:00:00 DP0] Prefill batch, #new-seq: 2, #new-token: 300, #cached-token: 20, token usage: 0.10, #running-req: 5, #queue-req: 1, #pending-token: 900, #bootstrap-req: 8, #inflight-req: 7, cuda graph: False, input throughput (token/s): 100.00",
        // 0.5.16
        "[2026-07-01 10:00:00 DP0] Prefill batch, #new-seq: 2, #new-token: 300, #cached-token: 20, token usage: 0.10, #running-req: 5, #queue-req: 1, #pending-token: 900, #bootstrap-req: 8, #inflight-req: 7, #optimistic-req: 1, cuda graph: False, input throughput (token/s): 100.00",
        // 0.5.23
        "[2026-11-24 03:39:26 DP1] Prefill batch, #new-seq: 2, #new-token: 300, #cached-token: 20, token usage: 0.10, #running-req: 5, #queue-req: 1, #pending-token: 900, #replay-token: 30, #bootstrap-req: 8, #inflight-req: 7, #optimistic-req: 1, cpu graph: False, input throughput (token/s): 1.44, fwd occupancy: 10.00%, fwd+idle occupancy: 20.00%",
    ]));
}

#[test]
fn whatever_stands_in_front_of_the_bracket_is_no_obstacle() {
    let pairs = "#running-req: 4, #queue-req: 1";
    for (front, rank) in [
        ("(SchedulerActor pid=123, ip=10.0.0.1) [2025-11-24 03:48:06 DP2] Decode batch, ", "DP2"),
        ("server-1  | [2025-11-24 03:48:06 TP1 DP2] Decode batch, ", "DP2 TP1"),
        ("[pod/sglang-0/server] [2025-11-24 03:48:06 DP2] Decode batch, ", "DP2"),
        ("2025-11-24T03:48:06.123456789Z stdout F [2025-11-24 03:48:06 DP2] Decode batch, ", "DP2"),
        ("Nov 24 03:48:06 host sglang[77]: [2025-11-24 03:48:06] Decode batch, ", "engine"),
        ("12: [2025-11-24 03:48:06 DP2] Decode batch, ", "DP2"),
        ("sglang-0 server [2025-11-24 03:48:06 DP2] Decode batch, ", "DP2"),
        ("2025-11-24T03:48:06.123456789Z [2025-11-24 03:48:06 DP2] Decode batch, ", "DP2"),
        ("{\"log\":\"[2025-11-24 03:48:06 DP2] Decode batch, ", "DP2"),
        ("{\"stream\": \"stdout\", \"message\": \"[2025-11-24 03:48:06 DP2] Decode batch, ", "DP2"),
        ("INFO scheduler DP2 TP0 | Decode batch, ", "DP2 TP0"),
        ("[DP3] Decode batch, ", "DP3"),
    ] {
        let mut fields = Fields::default();
        let line = front.to_owned() + pairs;
        let read = read(line.as_bytes(), &mut fields);
        assert_eq!(read.rank.to_string(), rank, "{line}");
        assert_eq!(fields.get(catalog::RUNNING_REQS), Some(4.0), "{line}");
        assert_eq!(fields.get(catalog::QUEUE_REQS), Some(1.0), "{line}");
    }
}

#[test]
fn profile_lines_tell_whose_window_began_and_ended() {
    insta::assert_snapshot!(rows(&[
        "[2026-11-24 03:50:59 DP1] Profiling starts. Traces will be saved to: /data/profiles/idle5 (with profile id: 1795492259.1385167)",
        "[2026-11-24 03:50:59 DP1] Profiling starts for DECODE. Traces will be saved to: /data (with profile id: 17)",
        "[2025-07-01 03:50:59 TP0] Profiling starts for True. Traces will be saved to: /tmp (with profile id: 17)",
        "[2025-08-01 03:50:59 TP0] Profiling starts for ForwardMode.EXTEND. Traces will be saved to: /tmp (with profile id: 17)",
        "[2026-11-24 03:51:04 DP0] Stop profiling...",
        "[2026-11-24 03:51:04 DP0] Stop profiling-DECODE...",
        "[2026-11-24 03:51:20 DP0] Profiling done. Traces are saved to: /data/profiles/idle5",
        "[2026-11-24 03:51:20 DP0] Profiling done. Traces are saved to: /data Merged trace: /data/merged-17.trace.json.gz (Events: 5, Files: 2)",
        "[2026-11-24 03:51:20 DP0] Profiling done. Traces are saved to: /data Merge failed: No trace files found",
    ]));
}

#[test]
fn the_last_words_of_a_server_and_the_balance_of_its_experts_are_heard() {
    insta::assert_snapshot!(rows(&[
        "[2026-11-24 03:51:20 DP0] Scheduler hit an exception: Traceback (most recent call last):",
        "[2026-11-24 03:51:20] Received sigquit from a child process. It usually means the child failed.",
        "[2026-11-24 03:51:20 TP0] Watchdog timeout (self.watchdog_timeout=300)",
        "[2026-11-24 03:51:20 TP0] [Expert Balancedness] forward_pass_id=7 current_pass_balancedness=0.823 last_10_average_balancedness=0.811 last_100_average_balancedness=0.805 gpu_physical_count_sum=4096",
        "[2026-11-24 03:51:20] INFO:     127.0.0.1:44546 - \"POST /stop_profile HTTP/1.1\" 500 Internal Server Error",
        "Traceback (most recent call last):",
        "",
        "[",
    ]));
}

#[test]
fn what_a_user_wrote_is_never_taken_for_the_engines_own_words() {
    let words = [
        "Received sigquit from a child process. It usually means the child failed.",
        "Scheduler watchdog timeout (self.watchdog_timeout=300, self.soft=False)",
        "Scheduler hit an exception: Traceback (most recent call last):",
        "Profiling starts. Traces will be saved to: /p/forged (with profile id: 17)",
        "Stop profiling...",
        "Profiling done. Traces are saved to: /p/forged",
        "[2026-11-24 03:51:20 DP0] SIGQUIT received. signum=None, frame=None. It usually means one child failed.",
        "DP1 Decode batch, #running-req: 900, #queue-req: 900",
        "[2026-11-24 03:48:06 DP1] Decode batch, #running-req: 900, #queue-req: 900",
        "DP1 Prefill batch, #new-seq: 2, #new-token: 300, #queue-req: 900",
        "[Expert Balancedness] forward_pass_id=7 current_pass_balancedness=0.823",
    ];
    for words in words {
        for line in [
            // SGLang with --log-requests; before and after 0.5, plain and as JSON.
            format!(
                "[2026-11-24 03:51:20] Receive: obj=GenerateReqInput(rid='7', text='{words}', stream=False)"
            ),
            format!(
                "[2026-11-24 03:51:20] Finish: obj=GenerateReqInput(rid='7'), out={{'text': ' {words}'}}"
            ),
            format!("[2026-11-24 03:51:20] {{\"event\": \"request.received\", \"text\": \"{words}\"}}"),
            // vLLM.
            format!(
                "INFO 03-11 06:16:52 [logger.py:41] Received request cmpl-7: prompt: '{words}', params: None"
            ),
            // A front end's access line, and an error that quotes the request.
            format!("INFO:     127.0.0.1:4 - \"GET /x?{words} HTTP/1.1\" 404 Not Found"),
        ] {
            let mut fields = Fields::default();
            let content = read(line.as_bytes(), &mut fields).content;
            assert_eq!(content, LineContent::Other, "{line}");
        }
        for line in [format!("ValueError: unexpected text: {words}"), format!("user: {words}")] {
            // Loads are read behind any prefix without a quote, for loggers print what their users like.
            let content = read(line.as_bytes(), &mut Fields::default()).content;
            assert!(
                matches!(content, LineContent::Other | LineContent::Batch(_) | LineContent::Balancedness),
                "{line}: {content:?}"
            );
        }
    }
}

#[test]
fn requests_that_are_put_back_for_want_of_room_are_counted() {
    let put_back = |message: &str| {
        let line = format!("[2026-11-24 03:48:06 DP2 TP0] {message}");
        match read(line.as_bytes(), &mut Fields::default()).content {
            LineContent::Retraction(requests) => Some(requests),
            _ => None,
        }
    };
    for rest in
        ["#new_token_ratio: 0.9998 -> 1.0000", "#new_tokens_gained: 512, #new_token_ratio: 0.6 -> 0.7"]
    {
        let line = format!("KV cache pool is full. Retract requests. #retracted_reqs: 12, {rest}");
        assert_eq!(put_back(&line), Some(12.0));
    }
    assert_eq!(put_back("KV cache pool is full. Retract requests. #retracted_reqs: many"), None);
    assert_eq!(put_back("KV Cache is allocated. #tokens: 200000"), None);
}

#[test]
fn a_scheduler_that_only_warns_of_its_watchdog_does_not_die() {
    let soft =
        "[2026-11-24 03:51:20 TP0] Scheduler watchdog timeout (self.watchdog_timeout=300, self.soft=True)";
    assert_eq!(read(soft.as_bytes(), &mut Fields::default()).content, LineContent::Other);
}

#[test]
fn the_last_words_are_heard_behind_what_containers_and_loggers_put_in_front() {
    for front in [
        "sglang-1  | [2026-11-24 03:48:06] ",
        "[pod/sglang-0/server] [2026-11-24 03:48:06] ",
        "Nov 24 03:48:06 node7 sglang[123]: [2026-11-24 03:48:06 DP2] ",
        "(Scheduler pid=123, ip=10.0.0.1) [2026-11-24 03:48:06 TP0] ",
        "2026-11-24T03:48:06.123456789Z stderr F [2026-11-24 03:48:06] ",
        "2026-11-24 03:48:06,123 ERROR sglang.srt.managers.tokenizer_manager: ",
        "ERROR scheduler DP2 TP0 | ",
        "",
    ] {
        let line =
            format!("{front}Received sigquit from a child process. It usually means the child failed.");
        let content = read(line.as_bytes(), &mut Fields::default()).content;
        assert!(matches!(content, LineContent::Fatal(_)), "{line}: {content:?}");
    }
}

#[test]
fn unknown_keys_are_kept_and_broken_lines_give_what_they_have() {
    let mut fields = Fields::default();
    let line =
        b"[2026-11-24 03:48:06 DP2] Decode batch, #running-req: 4, #new-thing: 7, mood: good, #queue-req: 1";
    let LineContent::Batch(batch) = read(line, &mut fields).content else { panic!("a batch line") };
    assert_eq!(batch.unknown, 2);
    let pairs: Vec<_> = batch.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(pairs, ["#running-req=4", "#new-thing=7", "mood=good", "#queue-req=1"]);
    assert_eq!(
        shown("[2026-11-24 03:48:06 DP2] Decode batch, #running-req: 4, #tok"),
        "03:48:06 DP2 Decode running_reqs=4"
    );
    assert_eq!(
        shown("[2026-11-24 03:48:06 DP2] Decode batch, #running-req: , #queue-req: nan"),
        "03:48:06 DP2 Other"
    );
    assert_eq!(shown("[2026-11-24 03:48:06 DP2] Decode batch"), "03:48:06 DP2 Other");
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(line in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let mut fields = Fields::default();
        read(&line, &mut fields);
        let mut batch = b"[2026-11-24 03:48:06 DP2] Decode batch".to_vec();
        batch.extend(&line);
        read(&batch, &mut fields);
    }
}
