//! Quoted text of a prompt, which is all that the glyph encoders get to see.

/// A pair of quotation marks.
type Marks = (char, char);

const SINGLE: Marks = ('\'', '\'');
const DOUBLE: Marks = ('"', '"');
const CURLY_SINGLE: Marks = ('\u{2018}', '\u{2019}');
const CURLY_DOUBLE: Marks = ('\u{201c}', '\u{201d}');

/// As HunyuanVideo 1.5 does: straight and curly double quotes in their order, each text once.
pub(super) fn hunyuan_video(prompt: &str) -> Option<String> {
    let mut texts: Vec<&str> = Vec::new();
    for text in quoted(prompt, &[DOUBLE, CURLY_DOUBLE]) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    sentence(&texts)
}

/// As HunyuanImage 2.1 does: kind after kind, apostrophes too, repeated texts repeated.
pub(super) fn hunyuan_image(prompt: &str) -> Option<String> {
    let kinds = [SINGLE, DOUBLE, CURLY_SINGLE, CURLY_DOUBLE];
    let texts: Vec<&str> = kinds
        .iter()
        .flat_map(|kind| quoted(prompt, &[*kind]))
        .collect();
    sentence(&texts)
}

/// The texts between `marks`, from left to right, none over the end of a line.
fn quoted<'a>(prompt: &'a str, marks: &[Marks]) -> Vec<&'a str> {
    let mut texts = Vec::new();
    let mut rest = prompt;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        let text = marks
            .iter()
            .filter(|(open, _)| *open == c)
            .find_map(|&(_, close)| {
                let end = after.find(['\n', close])?;
                after[end..].starts_with(close).then_some((end, close))
            });
        rest = match text {
            Some((end, close)) => {
                texts.push(&after[..end]);
                &after[end + close.len_utf8()..]
            }
            None => after,
        };
    }
    texts
}

fn sentence(texts: &[&str]) -> Option<String> {
    let named: Vec<String> = texts
        .iter()
        .map(|text| format!("Text \"{text}\""))
        .collect();
    (!named.is_empty()).then(|| named.join(". ") + ". ")
}
