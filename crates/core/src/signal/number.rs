//! Decimal numbers at the front of bytes, several times faster than `str::parse` for what servers
//! print, and the same value to the last bit: up to fifteen digits and a small power of ten divide
//! exactly (Clinger 1990, the fast path); anything else goes to the standard library.

/// Powers of ten that an `f64` holds exactly.
const EXACT: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
    1e19, 1e20, 1e21, 1e22,
];

/// The first of them, as whole numbers.
const TENS: [i64; 8] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000];

/// The number that `bytes` begin with, and how many bytes it takes; `None` when they begin with none.
/// Reads `-12.5e3`, not `NaN` or `inf` (see [`whole`]).
#[inline(always)]
pub fn leading(bytes: &[u8]) -> Option<(f64, usize)> {
    match short(bytes) {
        Some(number) => Some(number),
        None => long(bytes),
    }
}

/// A number like `40123` or `0.65`: one to seven digits, and as many behind a point, where eight
/// bytes can be examined at once. Servers print little else; after `None` the slow way is tried.
#[inline(always)]
fn short(bytes: &[u8]) -> Option<(f64, usize)> {
    let (whole, at) = seven_digits(bytes)?;
    match bytes.get(at) {
        Some(b'.') => {
            let (fraction, digits) = seven_digits(&bytes[at + 1..])?;
            let end = at + 1 + digits;
            let mantissa = whole * TENS[digits] + fraction;
            (!matches!(bytes.get(end), Some(b'e' | b'E'))).then(|| (mantissa as f64 / EXACT[digits], end))
        }
        Some(b'e' | b'E') => None,
        _ => Some((whole as f64, at)),
    }
}

/// The one to seven digits that `bytes` begin with, all at once (Lemire, "Number parsing at a
/// gigabyte per second", 2021), and how many; `None` for none or for more.
#[inline(always)]
fn seven_digits(bytes: &[u8]) -> Option<(i64, usize)> {
    let eight = bytes.first_chunk().map_or_else(|| padded(bytes), |eight| u64::from_le_bytes(*eight));
    let eight = eight ^ 0x3030_3030_3030_3030;
    let others = (eight | eight.wrapping_add(0x7676_7676_7676_7676)) & 0x8080_8080_8080_8080;
    let count = others.trailing_zeros() as usize / 8;
    if count == 0 || count == 8 {
        return None;
    }
    // As if zeros stood in front, then pairs, then fours, then all eight.
    let ones = eight << (64 - 8 * count);
    let twos = (ones & 0x0f0f_0f0f_0f0f_0f0f).wrapping_mul(2561) >> 8;
    let fours = (twos & 0x00ff_00ff_00ff_00ff).wrapping_mul(6_553_601) >> 16;
    let all = (fours & 0x0000_ffff_0000_ffff).wrapping_mul(42_949_672_960_001) >> 32;
    Some((all as i64, count))
}

/// Fewer than eight bytes, with what is no digit behind them.
#[inline(never)]
fn padded(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |eight, byte| eight << 8 | u64::from(*byte))
}

#[inline(never)]
fn long(bytes: &[u8]) -> Option<(f64, usize)> {
    let negative = bytes.first() == Some(&b'-');
    let start = usize::from(negative || bytes.first() == Some(&b'+'));
    let (mut mantissa, mut count) = digits(&bytes[start..], 0);
    let (mut at, mut fraction) = (start + count, 0);
    if let [b'.', behind @ ..] = &bytes[at..] {
        (mantissa, fraction) = digits(behind, mantissa);
        count += fraction;
        at += 1 + fraction;
    }
    if count == 0 {
        return None;
    }
    let plain_end = at;
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        at = exponent_end(bytes, at);
    }
    if at > plain_end || count > 15 {
        let value = std::str::from_utf8(&bytes[..at]).ok()?.parse().ok()?;
        return Some((value, at));
    }
    // Fifteen digits fit into an i64, whose conversion is one instruction.
    let whole = mantissa as i64 as f64;
    let value = if fraction == 0 { whole } else { whole / EXACT[fraction] };
    Some((if negative { -value } else { value }, at))
}

/// Appends the digits that `bytes` begin with to `mantissa`; how many there are.
fn digits(bytes: &[u8], mut mantissa: u64) -> (u64, usize) {
    for (count, byte) in bytes.iter().enumerate() {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return (mantissa, count);
        }
        mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit));
    }
    (mantissa, bytes.len())
}

/// Where the exponent that begins at `at` ends; `at` itself when no digits follow the `e`.
fn exponent_end(bytes: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    if matches!(bytes.get(end), Some(b'+' | b'-')) {
        end += 1;
    }
    let first = end;
    while bytes.get(end).is_some_and(u8::is_ascii_digit) {
        end += 1;
    }
    if end > first { end } else { at }
}

/// The number that `bytes` are, `NaN` and `+Inf` included; `None` when they are not one.
pub fn whole(bytes: &[u8]) -> Option<f64> {
    match leading(bytes) {
        Some((value, end)) if end == bytes.len() => Some(value),
        _ => std::str::from_utf8(bytes).ok()?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_as_servers_print_them() {
        for (text, value, end) in [
            ("12, ", 12.0, 2),
            ("0.07, x", 0.07, 4),
            ("-3.5", -3.5, 4),
            ("93.5%", 93.5, 4),
            ("1e3", 1000.0, 3),
            ("5.682700000875229e-05", 5.682_700_000_875_229e-5, 21),
            ("2e", 2.0, 1),
            ("1795492086.7102\t", 1_795_492_086.710_2, 15),
        ] {
            assert_eq!(leading(text.as_bytes()), Some((value, end)), "{text}");
        }
        for text in ["", "True", "-", ".", "#1"] {
            assert_eq!(leading(text.as_bytes()), None, "{text}");
        }
        assert_eq!(whole(b"+Inf"), Some(f64::INFINITY));
        assert!(whole(b"NaN").is_some_and(f64::is_nan));
        assert_eq!(whole(b"1.5x"), None);
    }

    proptest! {
        #[test]
        fn it_gives_what_the_standard_library_gives(value in any::<f64>(), places in 0_usize..12) {
            prop_assume!(value.is_finite());
            for text in [format!("{value}"), format!("{value:e}"), format!("{:.*}", places, value % 1e9)] {
                prop_assert_eq!(whole(text.as_bytes()), text.parse().ok(), "{}", text);
                // With bytes behind it the quick way can be taken.
                let line = format!("{text}, #queue-req: 1");
                let expected = text.parse().ok().map(|value: f64| (value, text.len()));
                prop_assert_eq!(leading(line.as_bytes()), expected, "{}", line);
            }
        }

        #[test]
        fn the_quick_way_gives_what_the_long_one_gives(
            text in "[0-9]{0,9}(\\.[0-9]{0,9})?([eE,%:/ ;][0-9a-f]{0,9})?", tail in "[ -~]{0,9}",
        ) {
            let text = text + &tail;
            if let Some(number) = short(text.as_bytes()) {
                prop_assert_eq!(Some(number), long(text.as_bytes()), "{}", text);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = (leading(&bytes), whole(&bytes));
        }
    }
}
