//! The kernels of each rank as CSV (RFC 4180 with a header, `.` for decimals): one line per rank, kind
//! of step and kernel. DuckDB, pandas and Spark read it without options.

use std::io::{self, Write};

use crate::printable::printable;
use crate::profile::RankProfile;
use crate::rank::{Axis, RankId};
use crate::step::StepKind;

/// The columns. Those of axes that a rank lacks stay empty.
const HEADER: &str = "rank,dp_rank,tp_rank,pp_rank,ep_rank,pid,step_kind,steps,family,kernel,kernel_full,\
launches,launches_per_step,total_ms,ms_per_step,mean_us,blocks_mean";

/// Writes the kernels of each rank as CSV.
///
/// # Errors
/// When `out` fails.
pub fn write_csv(out: &mut impl Write, profiles: &[RankProfile]) -> io::Result<()> {
    writeln!(out, "{HEADER}")?;
    for p in profiles {
        for kind in StepKind::ALL {
            let steps = p.count(kind).max(1) as f64;
            for k in &p.kernels {
                let cost = k.by_kind[kind as usize];
                if cost.launches == 0 {
                    continue;
                }
                let ms = cost.time_ns as f64 / 1e6;
                writeln!(
                    out,
                    "{},{},{},{},{},{},{},{},{},{},{},{},{:.6},{:.6},{:.6},{:.3},{:.1}",
                    quoted(&p.rank.to_string()),
                    index(p.rank, Axis::Dp),
                    index(p.rank, Axis::Tp),
                    index(p.rank, Axis::Pp),
                    index(p.rank, Axis::Ep),
                    if let RankId::Pid(pid) = p.rank { pid.to_string() } else { String::new() },
                    kind.name(),
                    p.count(kind),
                    k.family.name(),
                    quoted(&k.short),
                    quoted(&k.name),
                    cost.launches,
                    cost.launches as f64 / steps,
                    ms,
                    ms / steps,
                    ms * 1e3 / cost.launches as f64,
                    k.blocks
                )?;
            }
        }
    }
    Ok(())
}

fn index(rank: RankId, axis: Axis) -> String {
    rank.get(axis).map_or_else(String::new, |i| i.to_string())
}

/// A field, in quotes where CSV needs them. Kernel names come from a file: one that a spreadsheet
/// would evaluate as a formula gets a space in front.
fn quoted(text: &str) -> String {
    let text = &*printable(text, usize::MAX);
    let guard = if text.starts_with(['=', '+', '-', '@']) { " " } else { "" };
    if guard.is_empty() && !text.contains(['"', ',', '\n', '\r']) {
        return text.to_owned();
    }
    format!("\"{guard}{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_where_they_must_be() {
        assert_eq!(quoted("plain<8u>"), "plain<8u>");
        assert_eq!(quoted("f(a, b)"), "\"f(a, b)\"");
        assert_eq!(quoted("say \"x\""), "\"say \"\"x\"\"\"");
        for formula in ["=cmd()", "+1", "-1", "@SUM(A1)"] {
            assert_eq!(quoted(formula), format!("\" {formula}\""));
        }
        assert_eq!(quoted("a\u{1b}[2J\r\nb"), "a\u{fffd}[2J  b");
    }
}
