//! HTML character references as Python's `html.unescape` reads them, which is not quite as
//! HTML 5 says: characters that no document may contain vanish instead of staying.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

/// Name with its `;` if it has one, tab, `!` if only ftfy knows it, code points.
const TABLE: &str = include_str!("entities.txt");

/// Longest name that is looked up, in characters and without `;`.
const MAX_NAME: usize = 32;

struct Entity {
    text: String,
    /// Not HTML 5: an upper-case spelling that ftfy accepts besides.
    only_ftfy: bool,
}

static ENTITIES: LazyLock<HashMap<&'static str, Entity>> = LazyLock::new(|| {
    TABLE
        .lines()
        .filter_map(|line| {
            let (name, codes) = line.split_once('\t')?;
            let (codes, only_ftfy) = match codes.strip_prefix('!') {
                Some(codes) => (codes, true),
                None => (codes, false),
            };
            let text = codes
                .split(' ')
                .filter_map(|code| char::from_u32(u32::from_str_radix(code, 16).ok()?))
                .collect();
            Some((name, Entity { text, only_ftfy }))
        })
        .collect()
});

fn html5(name: &str) -> Option<&'static str> {
    let entity = ENTITIES.get(name).filter(|entity| !entity.only_ftfy)?;
    Some(&entity.text)
}

/// Replaces every character reference, also those without a semicolon, once.
pub(super) fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        let (before, reference) = rest.split_at(start);
        out.push_str(before);
        rest = match unescape_one(&reference[1..], &mut out) {
            Some(used) => &reference[1 + used..],
            None => {
                out.push('&');
                &reference[1..]
            }
        };
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Reads a reference whose `&` is behind us and writes what it stands for; returns the bytes
/// used, or `None` if this is not even the form of a reference.
fn unescape_one(text: &str, out: &mut String) -> Option<usize> {
    if let Some(number) = text.strip_prefix('#') {
        let (digits, radix) = match number.strip_prefix(['x', 'X']) {
            Some(hex) => (hex, 16),
            None => (number, 10),
        };
        let len = digits
            .find(|c: char| !c.is_digit(radix))
            .unwrap_or(digits.len());
        if len == 0 {
            return None;
        }
        out.extend(numbered(&digits[..len], radix));
        let semicolon = usize::from(digits[len..].starts_with(';'));
        return Some(text.len() - digits.len() + len + semicolon);
    }
    let len = text
        .char_indices()
        .take(MAX_NAME)
        .take_while(|(_, c)| !matches!(c, '\t' | '\n' | '\x0c' | ' ' | '<' | '&' | '#' | ';'))
        .last()
        .map(|(at, c)| at + c.len_utf8())?;
    let used = len + usize::from(text[len..].starts_with(';'));
    let name = &text[..used];
    if let Some(character) = html5(name) {
        out.push_str(character);
        return Some(used);
    }
    // The longest known beginning counts; a name has two characters at least.
    let known = name
        .char_indices()
        .map(|(at, _)| at)
        .skip(2)
        .filter_map(|cut| Some((cut, html5(&name[..cut])?)))
        .last();
    match known {
        Some((cut, character)) => {
            out.push_str(character);
            out.push_str(&name[cut..]);
        }
        None => {
            out.push('&');
            out.push_str(name);
        }
    }
    Some(used)
}

/// The character with this number, if any is allowed there.
fn numbered(digits: &str, radix: u32) -> Option<char> {
    let code = digits.chars().fold(0u32, |code, digit| {
        // Past the last code point the exact value no longer matters.
        (code * radix + digit.to_digit(radix).unwrap_or(0)).min(0x11_0000)
    });
    match code {
        0 => Some('\u{fffd}'),
        0xd => Some('\r'),
        0x80..=0x9f => super::codec::windows_1252(code as u8),
        1..=8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef => None,
        // The last two of every plane are no characters; past the last plane there are none.
        0x11_0000.. => Some('\u{fffd}'),
        _ if code & 0xfffe == 0xfffe => None,
        _ => Some(char::from_u32(code).unwrap_or('\u{fffd}')),
    }
}

/// ftfy's own, more careful decoding: only references that end in `;`, but also some
/// upper-case spellings.
pub(super) fn unescape_careful(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let used = match reference_len(rest) {
            Some(used) => {
                push_careful(&rest[..used], &mut out);
                used
            }
            None => {
                out.push('&');
                1
            }
        };
        rest = &rest[used..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Bytes of `&`, perhaps `#`, 1 to 24 letters or digits, `;`, if that is what stands here.
fn reference_len(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let name = 1 + usize::from(bytes.get(1) == Some(&b'#'));
    let len = bytes[name..]
        .iter()
        .take_while(|byte| byte.is_ascii_alphanumeric())
        .count();
    ((1..=24).contains(&len) && bytes.get(name + len) == Some(&b';')).then_some(name + len + 1)
}

fn push_careful(reference: &str, out: &mut String) {
    if reference.starts_with("&#") {
        let decoded = unescape(reference);
        // A semicolon that is still there means that only a part was understood.
        out.push_str(if decoded.contains(';') {
            reference
        } else {
            &decoded
        });
    } else {
        match ENTITIES.get(&reference[1..]) {
            Some(entity) => out.push_str(&entity.text),
            None => out.push_str(reference),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        let html5 = ENTITIES.values().filter(|entity| !entity.only_ftfy);
        assert_eq!(html5.count(), 2231);
        assert_eq!(ENTITIES.len(), TABLE.lines().count());
        assert!(ENTITIES.values().all(|entity| !entity.text.is_empty()));
    }

    #[test]
    fn references_without_semicolon_take_the_longest_known_beginning() {
        assert_eq!(
            unescape("&notit; &notin; &notit &ampamp;"),
            "¬it; ∉ ¬it &amp;"
        );
        assert_eq!(
            unescape("&#65&#x42;&#0;&#1;&#xd800;&#99999999999;"),
            "AB\u{fffd}\u{fffd}\u{fffd}"
        );
        assert_eq!(unescape("&;&#;&#x;& &unknown;"), "&;&#;&#x;& &unknown;");
    }

    #[test]
    fn the_careful_decoding_wants_a_semicolon() {
        assert_eq!(
            unescape_careful("&not &not; &EACUTE; &#59; &#233;"),
            "&not ¬ É &#59; é"
        );
    }
}
