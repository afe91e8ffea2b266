//! Text from outside (log lines, answers of servers, names in files), made safe to show.
//!
//! A log line can hold a user's prompt, and a prompt can hold anything: escape sequences that rewrite
//! a terminal, characters that reverse the reading direction, megabytes. Whatever is shown, logged or
//! sent goes through [`printable`] once, where it enters.

use std::borrow::Cow;

/// The most bytes of one piece of foreign text that are shown.
pub const LIMIT: usize = 512;

/// `text` on one line, without control characters (C0, C1, DEL), without characters that change the
/// reading direction or are invisible (bidi embeddings, overrides and isolates, zero-width marks,
/// line and paragraph separators), and cut to `limit` bytes with `...` at its end. What is taken out
/// leaves a space where it separated words (tab, line feed), else U+FFFD, so that the reader sees
/// that something was there.
pub fn printable(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit && is_printable(text) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len().min(limit.saturating_add(3)));
    for c in text.chars() {
        let c = match c {
            '\t' | '\n' | '\r' | '\u{2028}' | '\u{2029}' => ' ',
            c if is_unsafe(c) => char::REPLACEMENT_CHARACTER,
            c => c,
        };
        if shown.len() + c.len_utf8() > limit {
            shown.push_str("...");
            break;
        }
        shown.push(c);
    }
    Cow::Owned(shown)
}

/// Whether a text has nothing that [`printable`] would take out, whatever its length.
pub fn is_printable(text: &str) -> bool {
    !text.chars().any(is_unsafe)
}

/// [`printable`] of bytes, whatever their encoding.
pub fn printable_bytes(bytes: &[u8], limit: usize) -> String {
    // A character has at most four bytes: what is beyond would be cut anyway, and need not be decoded.
    let head = &bytes[..bytes.len().min(limit.saturating_mul(4).saturating_add(4))];
    printable(&String::from_utf8_lossy(head), limit).into_owned()
}

/// Whether a character can hide or move what is beside it.
const fn is_unsafe(c: char) -> bool {
    matches!(c,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}'
        | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_text_in_any_script_is_left_as_it_is() {
        for text in ["Decode batch, #running-req: 4", "模型 größer ✓", ""] {
            assert!(matches!(printable(text, LIMIT), Cow::Borrowed(same) if same == text));
        }
    }

    #[test]
    fn escape_sequences_and_reversed_text_lose_their_power() {
        assert_eq!(printable("a\u{1b}[2Jb\u{202e}c\td\ne", LIMIT), "a\u{fffd}[2Jb\u{fffd}c d e");
    }

    #[test]
    fn a_long_text_is_cut_between_characters_and_says_so() {
        assert_eq!(printable("größer", 4), "grö...");
        assert_eq!(printable_bytes(&[b'x'; 10_000], 8), "xxxxxxxx...");
    }

    proptest! {
        #[test]
        fn whatever_comes_in_what_goes_out_is_short_and_safe(bytes in prop::collection::vec(any::<u8>(), 0..2000), limit in 0_usize..300) {
            let shown = printable_bytes(&bytes, limit);
            prop_assert!(shown.len() <= limit + 3);
            prop_assert!(!shown.chars().any(is_unsafe));
            // Showing it again changes nothing, unless it was cut.
            if !shown.ends_with("...") {
                prop_assert_eq!(printable(&shown, limit).into_owned(), shown);
            }
        }

        #[test]
        fn text_of_any_characters_is_made_safe(text in any::<String>()) {
            prop_assert!(!printable(&text, LIMIT).chars().any(is_unsafe));
        }
    }
}
