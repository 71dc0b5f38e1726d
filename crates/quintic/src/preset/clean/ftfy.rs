//! `ftfy.fix_text` of ftfy 6.3.1 with its default settings.
//!
//! Written after ftfy's behaviour and rules (Robyn Speer and others, Apache-2.0); the tests
//! hold it to ftfy's own results.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Regex, bytes};
use unicode_normalization::UnicodeNormalization;

use super::badness::{embedded_utf8, is_bad};
use super::codec::{self, CODECS, Codec};
use super::{html, tables};

/// Longest piece of text, in characters, that is looked at as a whole.
const MAX_SEGMENT: usize = 1_000_000;

// The patterns are constants, and the tests run them.
#[allow(clippy::unwrap_used)]
static TERMINAL_ESCAPE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("\x1b\\[(?:\\d|;)*[a-zA-Z]").unwrap());

/// UTF-8 sequences in which byte A0 became a space.
#[allow(clippy::unwrap_used)]
static SPACED_UTF8: LazyLock<bytes::Regex> = LazyLock::new(|| {
    bytes::Regex::new(concat!(
        r"(?-u)[\xc2\xc3\xc5\xce\xd0\xd9] ",
        r"|[\xe2\xe3] [\x80-\x84\x86-\x9f\xa1-\xbf]",
        r"|[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf] ",
        r"|\xf0 [\x80-\xbf][\x80-\xbf]",
        r"|\xf0[\x80-\xbf] [\x80-\xbf]",
        r"|\xf0[\x80-\xbf][\x80-\xbf] ",
    ))
    .unwrap()
});

/// UTF-8 and CESU-8 sequences in which a byte was lost, and lost bytes alone.
#[allow(clippy::unwrap_used)]
static LOSSY_UTF8: LazyLock<bytes::Regex> = LazyLock::new(|| {
    bytes::Regex::new(concat!(
        r"(?-u)[\xc2-\xdf]\x1a",
        r"|[\xc2\xc3]\?",
        r"|\xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]",
        r"|\xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]",
        r"|[\xe0-\xef][\x1a?][\x1a\x80-\xbf]",
        r"|[\xe0-\xef][\x1a\x80-\xbf][\x1a?]",
        r"|[\xf0-\xf4][\x1a?][\x1a\x80-\xbf][\x1a\x80-\xbf]",
        r"|[\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]",
        r"|[\xf0-\xf4][\x1a\x80-\xbf][\x1a\x80-\xbf][\x1a?]",
        r"|\x1a",
    ))
    .unwrap()
});

/// Mends `text` line by line.
pub(super) fn fix_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    // One `<` anywhere makes the text HTML from there on, whose references mean something.
    let mut markup = false;
    while !rest.is_empty() {
        let line = rest.find('\n').map_or(rest.len(), |at| at + 1);
        let cut = rest[..line].char_indices().nth(MAX_SEGMENT);
        let (segment, after) = rest.split_at(cut.map_or(line, |(at, _)| at));
        markup |= segment.contains('<');
        out.push_str(&fix_segment(segment, markup));
        rest = after;
    }
    out
}

fn fix_segment(segment: &str, markup: bool) -> String {
    let mut text = segment.to_owned();
    loop {
        let fixed = fix_once(&text, markup);
        if fixed == text {
            return text;
        }
        text = fixed;
    }
}

fn fix_once(text: &str, markup: bool) -> String {
    let text = if markup {
        Cow::Borrowed(text)
    } else {
        html::unescape_careful(text)
    };
    let text = fix_characters(&fix_encoding(&text));
    let text = text.replace("\r\n", "\n");
    let text = text.replace(['\r', '\u{2028}', '\u{2029}', '\u{85}'], "\n");
    let text = TERMINAL_ESCAPE.replace_all(&text, "");
    text.chars().filter(|&c| !is_control(c)).nfc().collect()
}

/// C1 controls as Windows-1252, ligatures apart, usual widths, straight quotes.
fn fix_characters(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if let Some(c) = c1_meant(c) {
            // What a control was meant to be may itself be a quote.
            out.push(straight(c));
        } else if let Ok(at) = tables::LIGATURES.binary_search_by_key(&c, |&(ligature, _)| ligature)
        {
            out.extend(tables::LIGATURES[at].1.chars().map(straight));
        } else if c == '\u{3000}' {
            out.push(' ');
        } else if ('\u{ff01}'..'\u{fff0}').contains(&c) {
            out.extend(std::iter::once(c).nfkc());
        } else {
            out.push(straight(c));
        }
    }
    out
}

/// What a C1 control was meant to be.
fn c1_meant(c: char) -> Option<char> {
    match c {
        '\u{80}'..='\u{9f}' => codec::windows_1252(c as u8),
        _ => None,
    }
}

fn straight(c: char) -> char {
    match c {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => '\'',
        '\u{201c}'..='\u{201f}' => '"',
        _ => c,
    }
}

/// Controls that do nothing in a text; tab, new line, form feed and return stay.
fn is_control(c: char) -> bool {
    matches!(c, '\0'..='\x08' | '\x0b' | '\x0e'..='\x1f' | '\x7f'
        | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}')
}

/// Undoes decodings with a wrong encoding, as long as it finds signs of one.
fn fix_encoding(text: &str) -> String {
    let mut text = text.to_owned();
    loop {
        match fix_encoding_once(&text) {
            Some(fixed) if fixed != text => text = fixed,
            _ => return text,
        }
    }
}

/// One step of that; `None` if there is nothing to do, or nothing that is known to help.
fn fix_encoding_once(text: &str) -> Option<String> {
    if text.is_ascii() || !is_bad(text) {
        return None;
    }
    for codec in CODECS.iter() {
        if let Some(bytes) = codec.encode(text)
            && let Some(fixed) = as_utf8(codec, bytes)
        {
            return Some(fixed);
        }
    }
    let pieces = embedded_utf8(text);
    if !pieces.is_empty() {
        let fixed = fix_pieces(text, &pieces);
        if fixed != text {
            return Some(fixed);
        }
    }
    // With characters of Latin-1 alone, controls among them were meant as Windows-1252.
    if let Some(fixed) = codec::latin_1_as_windows_1252(text)
        && fixed != text
    {
        return Some(fixed);
    }
    let fixed = text.chars().map(|c| c1_meant(c).unwrap_or(c)).collect();
    (fixed != text).then_some(fixed)
}

/// The text that `bytes` are in UTF-8, once spaces and lost bytes are put right.
fn as_utf8(codec: &Codec, mut bytes: Vec<u8>) -> Option<String> {
    // In MacRoman this would take a dash and a space for a broken letter.
    if !codec.macroman && SPACED_UTF8.is_match(&bytes) {
        bytes = restore_a0(&bytes);
    }
    if codec.sloppy {
        bytes = LOSSY_UTF8
            .replace_all(&bytes, "\u{fffd}".as_bytes())
            .into_owned();
    }
    if bytes.iter().any(|byte| matches!(byte, 0xc0 | 0xed)) {
        codec::decode_utf8_variants(&bytes)
    } else {
        codec::decode_utf8(&bytes)
    }
}

fn restore_a0(bytes: &[u8]) -> Vec<u8> {
    let spaced = separate_a_grave(bytes);
    SPACED_UTF8
        .replace_all(&spaced, |hit: &bytes::Captures<'_>| -> Vec<u8> {
            let restored = hit[0].iter();
            restored
                .map(|&byte| if byte == b' ' { 0xa0 } else { byte })
                .collect()
        })
        .into_owned()
}

/// `C3 20` is mostly the word "à" with its space, of which only one byte is left; but not
/// before another space, nor in the Portuguese words "às", "àquele" and their kin.
fn separate_a_grave(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 8);
    let mut rest = bytes;
    while let [first, after @ ..] = rest {
        if let [0xc3, b' ', next @ ..] = rest {
            let joined: [&[u8]; 5] = [b" ", b"quele", b"quela", b"quilo", b"s "];
            if !joined.iter().any(|word| next.starts_with(word)) {
                out.extend_from_slice(&[0xc3, 0xa0, b' ']);
                rest = next;
                continue;
            }
        }
        out.push(*first);
        rest = after;
    }
    out
}

/// Mends pieces of another encoding, each for itself.
fn fix_pieces(text: &str, pieces: &[std::ops::Range<usize>]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for piece in pieces {
        out.push_str(&text[done..piece.start]);
        let garbled = &text[piece.clone()];
        // A piece that is the whole text would be looked at for ever.
        if garbled.len() < text.len() && is_bad(garbled) {
            out.push_str(&fix_encoding(garbled));
        } else {
            out.push_str(garbled);
        }
        done = piece.end;
    }
    out.push_str(&text[done..]);
    out
}
