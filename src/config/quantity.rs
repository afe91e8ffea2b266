//! Durations and byte counts as people write them: `5s`, `1m30s`, `250ms`, `24h`, `20GiB`.

#[cfg(test)]
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

#[cfg(test)]
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A duration in a configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A number of bytes in a configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

const DURATION_UNITS: [(&str, u64); 5] = [
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

const BYTE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Reads `1m30s`; every part needs its unit, and larger units come first.
pub fn duration_of(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut nanos = 0.0;
    let mut last = u64::MAX;
    while !rest.is_empty() {
        let (number, unit, after) = part(rest)?;
        let (_, scale) = DURATION_UNITS.iter().find(|(name, _)| *name == unit)?;
        if *scale >= last {
            return None;
        }
        last = *scale;
        nanos += number * *scale as f64;
        rest = after;
    }
    (last != u64::MAX && nanos < 1e18).then(|| Duration::from_nanos(nanos.round() as u64))
}

/// Reads `20GiB`; a unit is needed unless the number is 0.
pub fn bytes_of(text: &str) -> Option<u64> {
    let (number, unit, rest) = part(text.trim())?;
    let scale = match unit {
        "" if number == 0.0 => 1,
        unit => BYTE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
    };
    let bytes = number * scale as f64;
    (rest.is_empty() && bytes < 1e18).then_some(bytes.round() as u64)
}

fn part(text: &str) -> Option<(f64, &str, &str)> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    let rest = rest.trim_start();
    let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    let (unit, after) = rest.split_at(letters);
    Some((number.parse().ok()?, unit, after.trim_start()))
}

impl fmt::Display for Span {
    /// `1m30s`, as one would write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        if left == 0 {
            return f.write_str("0s");
        }
        for (unit, scale) in DURATION_UNITS.iter().rev() {
            let whole = left / scale;
            left %= scale;
            if whole > 0 {
                write!(f, "{whole}{unit}")?;
            }
        }
        if left > 0 { write!(f, "{}us", left / 1000) } else { Ok(()) }
    }
}

impl fmt::Display for Bytes {
    /// In the largest binary unit that leaves a whole number, else in bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = BYTE_UNITS
            .iter()
            .rev()
            .find(|(_, s)| s.is_power_of_two() && self.0 >= *s && self.0.is_multiple_of(*s));
        let (name, scale) = unit.unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.0 / scale)
    }
}

/// Reads a scalar with `read`; `wanted` describes the expected form in the error.
struct Text<T> {
    wanted: &'static str,
    read: fn(&str) -> Option<T>,
}

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.wanted)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.read)(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let wanted = "a duration with its unit, like `5s`, `250ms`, `10m` or `24h`";
        d.deserialize_str(Text { wanted, read: duration_of }).map(Self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_str(Text { wanted: "a size with its unit, like `20GiB` or `500MB`", read: bytes_of })
            .map(Self)
    }
}

#[cfg(test)]
impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A duration: `5s`, `250ms`, `1m30s`, `24h`, `7d`.",
            "pattern": r"^\s*([0-9.]+\s*(d|h|m|s|ms)\s*)+$"
        })
    }
}

#[cfg(test)]
impl JsonSchema for Bytes {
    fn schema_name() -> Cow<'static, str> {
        "Bytes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A size: `20GiB`, `500MB`.",
            "pattern": r"^\s*[0-9.]+\s*([kKMGTmgt]i?)?[Bb]\s*$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units_and_printed_the_same_way() {
        for (text, ms) in [
            ("5s", 5_000),
            ("250ms", 250),
            ("1m30s", 90_000),
            ("24h", 86_400_000),
            ("0.5s", 500),
            ("0s", 0),
            ("2d", 172_800_000),
            ("1h 5m", 3_900_000),
        ] {
            let read = duration_of(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(read, Duration::from_millis(ms), "{text}");
            assert_eq!(duration_of(&Span(read).to_string()), Some(read), "{text} printed");
        }
        for wrong in ["5", "s", "", "5 parsecs", "30s1m", "1m1m", "-3s", "1..2s", "99999999d"] {
            assert_eq!(duration_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_are_read_in_both_systems_of_units() {
        for (text, bytes) in [
            ("20GiB", 20 << 30),
            ("500MB", 500_000_000),
            ("0", 0),
            ("1.5 KiB", 1536),
            ("7B", 7),
            ("2gib", 2 << 30),
        ] {
            assert_eq!(bytes_of(text), Some(bytes), "{text}");
        }
        assert_eq!(Bytes(20 << 30).to_string(), "20GiB");
        for wrong in ["20", "GiB", "20 bananas", "1GiB2", "-1B"] {
            assert_eq!(bytes_of(wrong), None, "{wrong}");
        }
    }
}
