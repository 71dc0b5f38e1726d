//! Single-byte encodings, and UTF-8 as careless programs write it.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::tables;

/// A single-byte encoding in which ASCII is ASCII.
pub(super) struct Codec {
    /// What bytes 80..FF stand for; U+FFFD for nothing.
    upper: Vec<char>,
    bytes: HashMap<char, u8>,
    /// Has every byte: unassigned ones as in Latin-1, and byte 1A for U+FFFD.
    pub(super) sloppy: bool,
    /// The encoding of the classic Macintosh.
    pub(super) macroman: bool,
}

/// The encodings that text may have been decoded with by mistake, the likely ones first.
pub(super) static CODECS: LazyLock<[Codec; 10]> = LazyLock::new(|| {
    [
        Codec::new(tables::LATIN_1, false),
        Codec::new(tables::SLOPPY_WINDOWS_1252, true),
        Codec::new(tables::SLOPPY_WINDOWS_1251, true),
        Codec::new(tables::SLOPPY_WINDOWS_1250, true),
        Codec::new(tables::SLOPPY_WINDOWS_1253, true),
        Codec::new(tables::SLOPPY_WINDOWS_1254, true),
        Codec::new(tables::SLOPPY_WINDOWS_1257, true),
        Codec::new(tables::ISO_8859_2, false),
        Codec {
            macroman: true,
            ..Codec::new(tables::MACROMAN, false)
        },
        Codec::new(tables::CP437, false),
    ]
});

static STRICT_WINDOWS_1252: LazyLock<Vec<char>> =
    LazyLock::new(|| tables::WINDOWS_1252.chars().collect());

/// Byte 1A, which a sloppy encoding uses for U+FFFD.
pub(super) const SUBSTITUTE: u8 = 0x1a;

impl Codec {
    fn new(upper: &str, sloppy: bool) -> Self {
        let upper: Vec<char> = upper.chars().collect();
        let bytes = upper.iter().copied().zip(0x80..=0xff).collect();
        Codec {
            upper,
            bytes,
            sloppy,
            macroman: false,
        }
    }

    /// The bytes that this encoding would have read as `text`, if there are any.
    pub(super) fn encode(&self, text: &str) -> Option<Vec<u8>> {
        text.chars().map(|c| self.encode_char(c)).collect()
    }

    fn encode_char(&self, c: char) -> Option<u8> {
        match c {
            '\x1a' if self.sloppy => None,
            '\u{fffd}' if self.sloppy => Some(SUBSTITUTE),
            '\0'..='\x7f' => Some(c as u8),
            _ => self.bytes.get(&c).copied(),
        }
    }
}

/// What a browser makes of byte 80..9F: Windows-1252, or the control character.
pub(super) fn windows_1252(byte: u8) -> Option<char> {
    let upper = &CODECS[1].upper;
    upper.get(usize::from(byte).checked_sub(0x80)?).copied()
}

/// Latin-1 text read as Windows-1252 instead; `None` if a character has no byte in the one
/// or its byte no character in the other.
pub(super) fn latin_1_as_windows_1252(text: &str) -> Option<String> {
    text.chars()
        .map(|c| match c {
            '\0'..='\x7f' => Some(c),
            '\u{80}'..='\u{ff}' => {
                let meant = STRICT_WINDOWS_1252[c as usize - 0x80];
                (meant != '\u{fffd}').then_some(meant)
            }
            _ => None,
        })
        .collect()
}

/// UTF-8, or `None` if it is not.
pub(super) fn decode_utf8(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

/// UTF-8 with two liberties: `C0 80` for U+0000, and characters outside the basic plane as
/// two surrogates of three bytes each (CESU-8).
///
/// A new line as the very last byte stands in for the last byte of such a sequence. That is
/// an accident in ftfy, kept so that results are the same.
pub(super) fn decode_utf8_variants(bytes: &[u8]) -> Option<String> {
    let mut out = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, 0xc0 | 0xed)) {
        out.push_str(std::str::from_utf8(&rest[..at]).ok()?);
        rest = &rest[at..];
        rest = match rest {
            [0xc0, 0x80, after @ ..] => {
                out.push('\0');
                after
            }
            [0xc0, b'\n'] => {
                out.push('\0');
                &[]
            }
            [0xed, 0x80..=0x9f, 0x80..=0xbf, after @ ..] => {
                // An ordinary Hangul syllable or the like.
                out.push_str(std::str::from_utf8(&rest[..3]).ok()?);
                after
            }
            [
                0xed,
                a @ 0xa0..=0xaf,
                b @ 0x80..=0xbf,
                0xed,
                c @ 0xb0..=0xbf,
                d,
                after @ ..,
            ] if matches!(d, 0x80..=0xbf) || (*d == b'\n' && after.is_empty()) => {
                out.push(surrogates(*a, *b, *c, *d)?);
                after
            }
            _ => return None,
        };
    }
    out.push_str(std::str::from_utf8(rest).ok()?);
    Some(out)
}

fn surrogates(a: u8, b: u8, c: u8, d: u8) -> Option<char> {
    let bits = |byte: u8, mask: u8, shift: u32| u32::from(byte & mask) << shift;
    char::from_u32(
        0x1_0000 + bits(a, 0x0f, 16) + bits(b, 0x3f, 10) + bits(c, 0x0f, 6) + bits(d, 0x3f, 0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_one_to_one() {
        for codec in CODECS.iter() {
            assert_eq!(codec.upper.len(), 128);
            assert_eq!(codec.bytes.len(), 128);
            let upper: String = codec.upper.iter().collect();
            assert_eq!(codec.encode(&upper), Some((0x80..=0xff).collect()));
        }
    }

    #[test]
    fn careless_utf8_is_read() {
        assert_eq!(decode_utf8_variants(b"a\xc0\x80b").as_deref(), Some("a\0b"));
        let cesu = b"\xed\xa0\xbd\xed\xb2\xa9 \xed\x95\x9c";
        assert_eq!(
            decode_utf8_variants(cesu).as_deref(),
            Some("\u{1f4a9} \u{d55c}")
        );
        for bad in [
            &b"\xc0"[..],
            b"\xc0a",
            b"\xed\xa0\xbd",
            b"\xed\xa0\xbd\xed\x95\x9c",
            b"\xff",
        ] {
            assert_eq!(decode_utf8_variants(bad), None);
        }
    }
}
