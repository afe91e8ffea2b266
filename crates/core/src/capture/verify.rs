//! From facts about captured files to usable, partial or broken, with missing ranks named.
//!
//! A window counts as captured only if its files were examined: engines answer 200 to windows that
//! write nothing, and only the first rank's answer is examined by the server.

use crate::capture::captured::{CapturedFile, Quality};
use crate::capture::facts::{ServerKind, Sizes, speaks_for};
use skewtrap_trace::rank::{Axis, Rank};

/// What was found of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Artifact {
    /// In the agent's view.
    pub path: String,
    /// The rank, by the file's name.
    pub rank: Option<Rank>,
    /// Bytes.
    pub size: u64,
    /// Hex; empty as long as it was not computed.
    pub sha256: String,
    /// Inode number.
    pub inode: u64,
    /// Whether its stream ends as it should.
    pub whole: bool,
}

/// Whether the files of a window are complete.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FileVerification {
    /// In one word: whether they are usable.
    pub quality: Quality,
    /// Busy ranks without a file.
    pub missing: Vec<Rank>,
    /// Busy ranks whose file is cut off.
    pub cut: Vec<Rank>,
    /// Idle ranks without a file: a result, not an error.
    pub idle: Vec<Rank>,
}

/// The ranks that write a file each, by the server's sizes; axes of size one are not named.
///
/// With DP attention the TP group is split among the DP ranks, so there are `tp` of them;
/// replicas have `tp` each. Expert indices follow from the others and are left out.
pub fn expected_ranks(sizes: &Sizes) -> Vec<Rank> {
    let replicas = if sizes.dp_attention { 1 } else { sizes.dp };
    let slice = (sizes.tp / sizes.dp.max(1)).max(1);
    let mut ranks = Vec::new();
    for replica in 0..replicas {
        for pp in 0..sizes.pp {
            for tp in 0..sizes.tp {
                let dp = if sizes.dp_attention { (tp / slice).min(sizes.dp - 1) } else { replica };
                let named = [(Axis::Dp, dp, sizes.dp), (Axis::Tp, tp, sizes.tp), (Axis::Pp, pp, sizes.pp)];
                ranks.push(
                    named
                        .into_iter()
                        .filter(|(_, _, size)| *size > 1)
                        .fold(Rank::NONE, |rank, (axis, index, _)| rank.with(axis, index)),
                );
            }
        }
    }
    ranks
}

/// The one of `expected` that a log prefix or a file name means; those carry more axes or fewer.
pub fn expected_of(expected: &[Rank], named: Rank) -> Option<Rank> {
    let mut matches = expected.iter().copied().filter(|rank| speaks_for(*rank, named));
    let first = matches.next()?;
    // `DP1` fits `DP1 TP0` and `DP1 TP1`: it names neither.
    matches.next().is_none().then_some(first)
}

/// `DP0, DP2`.
pub fn names_of(ranks: &[Rank]) -> String {
    ranks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Judges the files of a window against the ranks that were to write one.
pub fn verify_files(expected: &[Rank], idle: &[Rank], files: &[Artifact]) -> FileVerification {
    let of = |rank: Rank| {
        files.iter().filter(move |f| f.rank.and_then(|r| expected_of(expected, r)) == Some(rank))
    };
    let mut verdict = FileVerification::default();
    for rank in expected.iter().copied() {
        let (mut any, mut whole) = (false, false);
        of(rank).for_each(|f| (any, whole) = (true, whole | f.whole));
        match (whole, any, idle.contains(&rank)) {
            (true, ..) => {}
            (_, _, true) => verdict.idle.push(rank),
            (false, true, _) => verdict.cut.push(rank),
            (false, false, _) => verdict.missing.push(rank),
        }
    }
    // Releases that call every DP engine's file rank 0 name none of them: they count, unnamed.
    let unnamed = |f: &&Artifact| f.whole && f.rank.is_some_and(|r| expected_of(expected, r).is_none());
    let spare = files.iter().filter(unnamed).count();
    if spare >= verdict.missing.len() {
        verdict.missing.clear();
    }
    let good = files.iter().any(|f| f.whole);
    verdict.quality = match (good, verdict.missing.is_empty() && verdict.cut.is_empty()) {
        (false, _) => Quality::Broken,
        (true, true) => Quality::Usable,
        (true, false) => Quality::Partial,
    };
    verdict
}

/// The rank in a file's name: `..-TP-0-DP-2..` (SGLang), `..dp0_pp0_tp1_..rank0..` (vLLM).
///
/// In a DP replica's SGLang trace the metadata says rank 0 for all of them: the name is more
/// reliable. vLLM calls every DP engine `rank0`; its releases since 0.19 name `dp`.
pub fn rank_of_name(engine: ServerKind, name: &str) -> Option<Rank> {
    match engine {
        ServerKind::Sglang => sglang_rank(name),
        ServerKind::Vllm => vllm_rank(name),
        ServerKind::TensorrtLlm => tensorrt_llm_rank(name),
        ServerKind::DynamoSglang => sglang_rank(name),
        ServerKind::DynamoVllm => vllm_rank(name),
    }
}

/// `trtllm-trace-1778480665-7993d824-rank-3.json`: the rank among all of the engine, which is that of tensor
/// parallelism unless there are several stages of a pipeline.
fn tensorrt_llm_rank(name: &str) -> Option<Rank> {
    let (_, number) = name.strip_prefix("trtllm-trace-")?.strip_suffix(".json")?.rsplit_once("-rank-")?;
    Some(Rank::tp(number.parse().ok()?))
}

/// The rank that a file names, as the ranks of its window are called. Under attention DP, TensorRT-LLM's number among
/// all is that of the DP rank.
pub fn rank_among(engine: ServerKind, expected: &[Rank], named: Rank) -> Rank {
    let are_dp = expected.iter().any(|rank| rank.get(Axis::Dp).is_some());
    match (engine, named.get(Axis::Tp)) {
        (ServerKind::TensorrtLlm, Some(number)) if are_dp => Rank::dp(number),
        _ => named,
    }
}

fn sglang_rank(name: &str) -> Option<Rank> {
    let stem = name.strip_suffix(".trace.json.gz").or_else(|| name.strip_suffix(".pickle"))?;
    let parts: Vec<&str> = stem.split('-').collect();
    let mut rank = Rank::NONE;
    // From the end: a prefix of the user's may hold `-TP-9` too.
    for pair in parts.windows(2).rev() {
        if let (Some(axis), Ok(index)) = (Axis::of_word(pair[0].as_bytes()), pair[1].parse())
            && rank.get(axis).is_none()
        {
            rank = rank.with(axis, index);
        }
    }
    (!rank.is_none()).then_some(rank)
}

fn vllm_rank(name: &str) -> Option<Rank> {
    if !name.contains(".pt.trace.json") || name.contains(".async_llm.") {
        return None;
    }
    // A prefix of the user's may hold dots: the name ends at the time stamp before the suffix.
    let front = name.split(".pt.trace.json").next()?.rsplit_once('.')?.0;
    let mut rank = Rank::NONE;
    for word in front.split('_') {
        let digits = word.trim_start_matches(|c: char| c.is_ascii_lowercase());
        let axis = match &word[..word.len() - digits.len()] {
            "dp" => Axis::Dp,
            "tp" => Axis::Tp,
            "pp" => Axis::Pp,
            "ep" => Axis::Ep,
            _ => continue,
        };
        if let Ok(index) = digits.parse() {
            rank = rank.with(axis, index);
        }
    }
    if rank.is_none() {
        let digits = front.rsplit_once("-rank-")?.1;
        rank = Rank::tp(digits.parse().ok()?);
    }
    Some(rank)
}

impl Artifact {
    /// As the incident keeps it: `path` inside the bundle, or where the file was left (then with
    /// its inode, so that retention deletes only what is unchanged).
    pub fn captured(&self, path: String, left_in_place: bool) -> CapturedFile {
        CapturedFile {
            path,
            size: self.size,
            sha256: self.sha256.clone(),
            inode: left_in_place.then_some(self.inode),
            rank: self.rank.map(Rank::labels),
            whole: self.whole,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(dp: u16, tp: u16, pp: u16, dp_attention: bool) -> Sizes {
        Sizes { dp, tp, pp, dp_attention, ..Sizes::default() }
    }

    fn names(sizes: &Sizes) -> String {
        expected_ranks(sizes).iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn the_expected_ranks_follow_from_the_sizes() {
        assert_eq!(names(&sizes(1, 1, 1, false)), "engine");
        assert_eq!(names(&sizes(4, 1, 1, false)), "DP0, DP1, DP2, DP3");
        assert_eq!(names(&sizes(2, 2, 1, false)), "DP0 TP0, DP0 TP1, DP1 TP0, DP1 TP1");
        assert_eq!(names(&sizes(2, 4, 1, true)), "DP0 TP0, DP0 TP1, DP1 TP2, DP1 TP3");
        assert_eq!(names(&sizes(1, 1, 2, false)), "PP0, PP1");
    }

    #[test]
    fn names_that_were_seen_give_their_rank() {
        let dp2tp0 = Some(Rank::dp(2).with(Axis::Tp, 0));
        for (engine, name, wanted) in [
            (ServerKind::Sglang, "1795492133.332911-TP-0-DP-2.trace.json.gz", dp2tp0),
            (ServerKind::Sglang, "exp1-1795492162.35-TP-0-DP-2.trace.json.gz", dp2tp0),
            (ServerKind::Sglang, "a-TP-9-1795492162.35-TP-0-DP-2.trace.json.gz", dp2tp0),
            (ServerKind::Sglang, "1795492178.920882-TP-0-DP-2-DECODE.trace.json.gz", dp2tp0),
            (ServerKind::Sglang, "merged-1795492160.6413982.trace.json.gz", None),
            (ServerKind::Vllm, "dp1_pp0_tp3_dcp0_ep0_rank3.1795.pt.trace.json.gz", {
                Some(Rank::dp(1).with(Axis::Tp, 3).with(Axis::Pp, 0).with(Axis::Ep, 0))
            }),
            (ServerKind::Vllm, "exp.1-i1_dp1_pp0_tp0_dcp0_ep0_rank1.1795.pt.trace.json.gz", {
                Some(Rank::dp(1).with(Axis::Tp, 0).with(Axis::Pp, 0).with(Axis::Ep, 0))
            }),
            (ServerKind::Vllm, "abc-rank-1.1795.pt.trace.json.gz", Some(Rank::tp(1))),
            (ServerKind::TensorrtLlm, "trtllm-trace-1778480665-7993d824-rank-3.json", Some(Rank::tp(3))),
            (ServerKind::TensorrtLlm, "trace-rank-3.json", None),
            (ServerKind::DynamoSglang, "1795492133.332911-TP-0-DP-2.trace.json.gz", dp2tp0),
            (ServerKind::Vllm, "host_12.async_llm.1795.pt.trace.json.gz", None),
        ] {
            assert_eq!(rank_of_name(engine, name), wanted, "{name}");
        }
    }

    #[test]
    fn the_file_of_a_rank_of_tensorrt_llm_is_that_of_the_dp_rank_under_attention_dp_alone() {
        let named =
            rank_of_name(ServerKind::TensorrtLlm, "trtllm-trace-1778480665-7993d824-rank-1.json").unwrap();
        let dp = expected_ranks(&sizes(2, 1, 1, false));
        let of = |expected: &[Rank]| rank_among(ServerKind::TensorrtLlm, expected, named);
        assert_eq!((of(&dp), expected_of(&dp, of(&dp))), (Rank::dp(1), Some(Rank::dp(1))));
        assert_eq!(of(&[Rank::NONE]), Rank::tp(1));
        assert_eq!(rank_among(ServerKind::Vllm, &dp, named), Rank::tp(1), "its engines all say rank 0");
    }

    fn file(rank: Rank, whole: bool) -> Artifact {
        Artifact { rank: Some(rank.with(Axis::Tp, 0)), whole, ..Artifact::default() }
    }

    #[test]
    fn a_missing_busy_rank_makes_it_partial_and_a_missing_idle_rank_does_not() {
        let expected = expected_ranks(&sizes(3, 1, 1, false));
        let files = [file(Rank::dp(0), true), file(Rank::dp(1), true)];
        let verdict = verify_files(&expected, &[], &files);
        assert_eq!((verdict.quality, verdict.missing), (Quality::Partial, vec![Rank::dp(2)]));
        let verdict = verify_files(&expected, &[Rank::dp(2)], &files);
        assert_eq!((verdict.quality, verdict.idle), (Quality::Usable, vec![Rank::dp(2)]));
    }

    #[test]
    fn a_file_that_is_cut_off_counts_for_nothing() {
        let expected = expected_ranks(&sizes(2, 1, 1, false));
        let verdict = verify_files(&expected, &[], &[file(Rank::dp(0), false), file(Rank::dp(1), true)]);
        assert_eq!((verdict.quality, verdict.cut), (Quality::Partial, vec![Rank::dp(0)]));
        assert_eq!(verify_files(&expected, &[], &[file(Rank::dp(0), false)]).quality, Quality::Broken);
        assert_eq!(verify_files(&expected, &[], &[]).quality, Quality::Broken);
    }

    #[test]
    fn files_that_all_say_rank_0_are_counted_instead() {
        let expected = expected_ranks(&sizes(2, 1, 1, false));
        let unnamed = || Artifact { rank: Some(Rank::tp(0)), whole: true, ..Artifact::default() };
        assert_eq!(verify_files(&expected, &[], &[unnamed(), unnamed()]).quality, Quality::Usable);
        assert_eq!(verify_files(&expected, &[], &[unnamed()]).missing.len(), 2);
    }

    #[test]
    fn a_name_that_fits_two_ranks_names_neither() {
        let expected = expected_ranks(&sizes(2, 2, 1, false));
        assert_eq!(expected_of(&expected, Rank::dp(1)), None);
        assert_eq!(
            expected_of(&expected, Rank::dp(1).with(Axis::Tp, 1).with(Axis::Ep, 3)),
            Some(expected[3])
        );
    }
}
