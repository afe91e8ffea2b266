//! Ranks as file names, process names and users write them. A name is read as a set of words with
//! numbers, never by position, because engines reorder and extend them.

use regex::Regex;

use super::{Axis, Rank};

/// What the name of a trace file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceFileName {
    /// The rank, if the name has one.
    pub rank: Option<Rank>,
    /// What all files of one capture share: SGLang's profile id.
    pub capture: Option<String>,
    /// The number among all ranks of the engine, where the name has no axis (`-rank-3.`).
    pub number: Option<u16>,
}

/// Reads the name of a trace file: `exp1-1795492162.35-TP-0-DP-2-EXTEND.trace.json.gz` (SGLang),
/// `dp0_pp0_tp1_dcp0_ep1_rank1.1795.pt.trace.json.gz`, `host-rank-3.1795.pt.trace.json.gz` (vLLM).
pub fn parse_file_name(file_name: &str) -> TraceFileName {
    let stem = file_name.split(".trace.json").next().unwrap_or(file_name);
    let sglang = sglang(stem);
    if sglang.rank.is_some() { sglang } else { vllm(stem) }
}

fn sglang(stem: &str) -> TraceFileName {
    let parts: Vec<&str> = stem.split('-').collect();
    let mut rank = Rank::NONE;
    let mut first = None;
    for (i, pair) in parts.windows(2).enumerate() {
        let axis = Axis::of_word(pair[0].as_bytes());
        if let (Some(axis), Ok(index)) = (axis, pair[1].parse()) {
            rank = rank.with(axis, index);
            first.get_or_insert(i);
        }
    }
    TraceFileName {
        rank: (!rank.is_none()).then_some(rank),
        capture: first.filter(|&i| i > 0).map(|i| parts[..i].join("-")),
        number: None,
    }
}

fn vllm(stem: &str) -> TraceFileName {
    let mut rank = Rank::NONE;
    let mut number = None;
    let words = stem.split(['_', '.', '-']);
    for word in words.clone() {
        let digits = word.trim_start_matches(|c: char| c.is_ascii_lowercase());
        let name = &word[..word.len() - digits.len()];
        let Ok(index) = digits.parse::<u16>() else { continue };
        match name {
            "dp" => rank = rank.with(Axis::Dp, index),
            "tp" => rank = rank.with(Axis::Tp, index),
            "pp" => rank = rank.with(Axis::Pp, index),
            "ep" => rank = rank.with(Axis::Ep, index),
            "rank" => number = Some(index),
            _ => {}
        }
    }
    let listed: Vec<&str> = words.collect();
    for pair in listed.windows(2) {
        if pair[0] == "rank" {
            number = number.or(pair[1].parse().ok());
        }
    }
    TraceFileName {
        rank: (!rank.is_none()).then_some(rank),
        capture: None,
        number: number.filter(|_| rank.is_none()),
    }
}

/// Reads a process name: `sglang::scheduler_DP3_TP1`, `VLLM::Worker_DP0_TP1_EP1`,
/// `VLLM::EngineCore_DP1`.
pub fn parse_process_name(name: &str) -> Option<Rank> {
    let mut rank = Rank::NONE;
    for word in name.split(['_', ' ', ':']) {
        let digits = word.trim_start_matches(|c: char| c.is_ascii_uppercase());
        let axis = Axis::of_word(&word.as_bytes()[..word.len() - digits.len()]);
        if let (Some(axis), Ok(index)) = (axis, digits.parse()) {
            rank = rank.with(axis, index);
        }
    }
    (!rank.is_none()).then_some(rank)
}

/// Reads a rank as users write it: `dp1`, `DP1-TP0`, `dp_rank=1`, `dp1,tp0`.
pub fn parse_rank(text: &str) -> Option<Rank> {
    let mut rank = Rank::NONE;
    for word in text.split([',', '-', ' ']).filter(|w| !w.is_empty()) {
        let lower = word.to_ascii_uppercase().replace("_RANK=", "").replace('=', "");
        let digits = lower.trim_start_matches(|c: char| c.is_ascii_uppercase() || c == '_');
        let axis = Axis::of_word(&lower.as_bytes()[..lower.len() - digits.len()])?;
        rank = rank.with(axis, digits.parse().ok()?);
    }
    (!rank.is_none()).then_some(rank)
}

/// The rank that a user's expression finds in a file name: groups named `dp`, `tp`, `pp`, `ep`, or one group
/// with a number, which then is a TP rank.
pub fn match_file_name(regex: &Regex, file_name: &str) -> Option<Rank> {
    let found = regex.captures(file_name)?;
    let mut rank = Rank::NONE;
    for axis in Axis::ALL {
        let index = found.name(&axis.word().to_ascii_lowercase()).and_then(|m| m.as_str().parse().ok());
        if let Some(index) = index {
            rank = rank.with(axis, index);
        }
    }
    if rank.is_none() {
        let text = found.get(1)?.as_str();
        rank = text.parse().map(Rank::tp).ok().or_else(|| parse_rank(text))?;
    }
    Some(rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_of_both_engines_tell_ranks_in_any_order() {
        let both = |dp, tp| Some(Rank::dp(dp).with(Axis::Tp, tp));
        let cases = [
            ("1795492133.332911-TP-0-DP-2.trace.json.gz", both(2, 0), Some("1795492133.332911")),
            ("exp1-1795492162.35-TP-0-DP-2-EXTEND.trace.json.gz", both(2, 0), Some("exp1-1795492162.35")),
            ("id-TP-3.trace.json", Some(Rank::tp(3)), Some("id")),
            (
                "id-TP-3-DP-1-PP-2-EP-3-decode.trace.json.gz",
                both(1, 3).map(|r| r.with(Axis::Pp, 2).with(Axis::Ep, 3)),
                Some("id"),
            ),
            ("id-TP-1-ForwardMode.EXTEND.trace.json.gz", Some(Rank::tp(1)), Some("id")),
            (
                "x_dp0_pp0_tp1_dcp0_ep1_rank1.1795492133332911.pt.trace.json.gz",
                both(0, 1).map(|r| r.with(Axis::Pp, 0).with(Axis::Ep, 1)),
                None,
            ),
            ("merged-1795.trace.json.gz", None, None),
            ("profile.json", None, None),
        ];
        for (name, rank, capture) in cases {
            let seen = parse_file_name(name);
            assert_eq!((seen.rank, seen.capture.as_deref()), (rank, capture), "{name}");
        }
        assert_eq!(parse_file_name("node7-rank-3.1795.pt.trace.json.gz").number, Some(3));
    }

    #[test]
    fn process_names_and_users_words_tell_ranks() {
        assert_eq!(parse_process_name("sglang::scheduler_DP3"), Some(Rank::dp(3)));
        assert_eq!(parse_process_name("sglang::scheduler_DP3_TP1"), Some(Rank::dp(3).with(Axis::Tp, 1)));
        assert_eq!(parse_process_name("VLLM::Worker_TP2"), Some(Rank::tp(2)));
        assert_eq!(parse_process_name("sglang::schedul"), None);
        assert_eq!(parse_process_name("python3"), None);
        for text in ["dp1", "DP1", "dp_rank=1", "dp=1"] {
            assert_eq!(parse_rank(text), Some(Rank::dp(1)), "{text}");
        }
        assert_eq!(parse_rank("dp1-tp0"), Some(Rank::dp(1).with(Axis::Tp, 0)));
        assert_eq!(parse_rank("first"), None);
        let re = Regex::new(r"worker(\d+)").expect("valid");
        assert_eq!(match_file_name(&re, "worker7.json"), Some(Rank::tp(7)));
        let re = Regex::new(r"w(?P<dp>\d+)").expect("valid");
        assert_eq!(match_file_name(&re, "w7.json"), Some(Rank::dp(7)));
    }
}
