//! Which character sequences are signs of text that was decoded with the wrong encoding.
//!
//! The rules are those of ftfy 6.3.1 (Robyn Speer and others, Apache-2.0): equal decisions
//! need equal rules. Python's `\w` and `\s` are spelled out, since the `regex` crate counts
//! marks among the first and leaves separators 1C..1F out of the second.

use std::sync::LazyLock;

use regex::Regex;

use super::tables::*;

const WORD: &str = r"[\p{L}\p{N}_]";
const SPACE: &str = r"[\s\x1c-\x1f]";

// The patterns are constants, and a test compiles them.
#[allow(clippy::unwrap_used)]
static BADNESS: LazyLock<Regex> = LazyLock::new(|| Regex::new(&rules().join("|")).unwrap());

#[allow(clippy::unwrap_used)]
static EMBEDDED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(&format!(
        "^(?:[{UTF8_FIRST_OF_2}][{UTF8_CONTINUATION}]\
         |[{UTF8_FIRST_OF_3}][{UTF8_CONTINUATION}]{{2}}\
         |[{UTF8_FIRST_OF_4}][{UTF8_CONTINUATION}]{{3}})+"
    ))
    .unwrap()
});

#[allow(clippy::unwrap_used)]
static CONTINUATION: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(&format!("[{UTF8_CONTINUATION_STRICT}]$")).unwrap());

/// Whether some of `text` looks as if decoded with the wrong encoding.
pub(super) fn is_bad(text: &str) -> bool {
    BADNESS.is_match(text)
}

/// The pieces of `text` that look like UTF-8 read as something else, as byte ranges; none
/// starts in the middle of a longer garble.
pub(super) fn embedded_utf8(text: &str) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        at += match EMBEDDED.find(rest) {
            Some(hit) if !after_continuation(&text[..at]) => {
                found.push(at..at + hit.end());
                hit.end()
            }
            _ => rest.chars().next().map_or(1, char::len_utf8),
        };
    }
    found
}

fn after_continuation(before: &str) -> bool {
    let last = before.char_indices().next_back().map_or(0, |(at, _)| at);
    CONTINUATION.is_match(&before[last..])
}

/// Pairs and triples of categories that sane text does not put next to each other.
fn rules() -> Vec<String> {
    let accented = format!("{LOWER_ACCENTED}{UPPER_ACCENTED}");
    let symbols = format!("{BOX}{START_PUNCTUATION}{END_PUNCTUATION}{CURRENCY}{NUMERIC}{LAW}");
    let arabic = format!("[ØÙ][{COMMON}{CURRENCY}{BAD}{NUMERIC}{START_PUNCTUATION}ŸŠ®°µ»]");
    let marks = format!("{C1}{BAD}{START_PUNCTUATION}{END_PUNCTUATION}{CURRENCY}");
    vec![
        format!("[{C1}]"),
        format!("[{BAD}{accented}{symbols}][{BAD}]"),
        format!("[a-zA-Z][{LOWER_COMMON}{UPPER_COMMON}][{BAD}]"),
        format!("[{BAD}][{accented}{symbols}]"),
        format!(
            "[{LOWER_ACCENTED}{LOWER_COMMON}{BOX}{END_PUNCTUATION}{CURRENCY}{NUMERIC}]\
             [{UPPER_ACCENTED}]"
        ),
        format!("[{BOX}{END_PUNCTUATION}{CURRENCY}{NUMERIC}][{LOWER_ACCENTED}]"),
        format!("[{LOWER_ACCENTED}{BOX}{END_PUNCTUATION}][{CURRENCY}]"),
        format!("{SPACE}[{UPPER_ACCENTED}][{CURRENCY}]"),
        format!("[{UPPER_ACCENTED}{BOX}][{NUMERIC}{LAW}]"),
        format!("[{accented}{BOX}{CURRENCY}{END_PUNCTUATION}][{START_PUNCTUATION}][{NUMERIC}]"),
        format!(
            "[{accented}{CURRENCY}{NUMERIC}{BOX}{LAW}][{END_PUNCTUATION}][{START_PUNCTUATION}]"
        ),
        format!("[{CURRENCY}{NUMERIC}{BOX}][{START_PUNCTUATION}]"),
        format!("[a-z][{UPPER_ACCENTED}][{START_PUNCTUATION}{CURRENCY}]"),
        format!("[{BOX}][{KAOMOJI}]"),
        format!("[{accented}{CURRENCY}{NUMERIC}{START_PUNCTUATION}{END_PUNCTUATION}{LAW}][{BOX}]"),
        format!("[{BOX}][{END_PUNCTUATION}]"),
        format!("[{accented}][{START_PUNCTUATION}{END_PUNCTUATION}]{WORD}"),
        "[Œœ][^A-Za-z]".into(),
        format!("[{UPPER_ACCENTED}]°"),
        // Windows-1252, two bytes.
        format!("[ÂÃÎÐ][€œŠš¢£Ÿž\\x{{a0}}\\x{{ad}}®©°·»{START_PUNCTUATION}{END_PUNCTUATION}–—´]"),
        "×[²³]".into(),
        // Windows-1252, Arabic: two such letters in a row, as the second signs are common.
        format!("{arabic}{arabic}"),
        // Windows-1252, scripts of South Asia.
        "à[²µ¹¼½¾]".into(),
        // MacRoman.
        "√[±∂†≠®™´≤≥¥µø]".into(),
        "≈[°¢]".into(),
        "‚Ä[ìîïòôúùû†°¢π]".into(),
        "‚[âó][àä°ê]".into(),
        // Windows-1251: punctuation from U+2000; Latin-1 or Cyrillic; twice garbled.
        "вЂ".into(),
        format!("[ВГРС][{marks}°µ][ВГРС]"),
        "ГўВЂВ.[A-Za-z ]".into(),
        // Windows-1252: à, á and the no-break space.
        "Ã[\\x{a0}¡]".into(),
        format!("[a-z]{SPACE}?[ÃÂ][ ]"),
        "^[ÃÂ][ ]".into(),
        format!("[a-z.,?!{END_PUNCTUATION}]Â[ {START_PUNCTUATION}{END_PUNCTUATION}]"),
        // Windows-1253: punctuation from U+2000; Latin-1 or Greek.
        "β€[™\\x{a0}Ά\\x{ad}®°]".into(),
        format!("[ΒΓΞΟ][{marks}°][ΒΓΞΟ]"),
        // Windows-1257: punctuation from U+2000.
        "ā€".into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbled_text_is_told_from_sane_text() {
        for bad in ["sÃ³", "âœ” ok", "voilÃ le", "вЂ”", "\u{85}", "√±"] {
            assert!(is_bad(bad), "{bad}");
        }
        for good in ["só", "✔ ok", "voilà le", "—", "Ünï", "日本語", "a ± b"] {
            assert!(!is_bad(good), "{good}");
        }
    }

    #[test]
    fn embedded_pieces_stand_on_their_own() {
        assert_eq!(embedded_utf8("日本 Ã©, Â£"), [7..11, 13..17]);
        assert!(embedded_utf8("€Ã©").is_empty());
    }
}
