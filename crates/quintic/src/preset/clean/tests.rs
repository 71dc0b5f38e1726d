use std::path::Path;

use super::*;

#[test]
fn white_space_is_pythons() {
    assert_eq!(lower_strip("\u{1c}\u{a0} A\u{1f}B \u{3000}\n"), "a\u{1f}b");
    assert_eq!(lower_strip("ΟΔΟΣ İ"), "οδος i\u{307}");
    assert_eq!(collapse(" a\u{1c}\u{85}b \u{200b} "), "a b \u{200b}");
}

#[test]
fn a_prompt_without_quotes_has_no_glyph_text() {
    assert_eq!(Cleaning::GlyphVideo.apply("it's 'here'"), None);
    assert_eq!(Cleaning::GlyphImage.apply("a \"b\nc\" d"), None);
    assert_eq!(
        Cleaning::GlyphVideo
            .apply("“A” \"b\" \"A\" \"\"")
            .as_deref(),
        Some("Text \"A\". Text \"b\". Text \"\". ")
    );
}

/// Results of Python's and ftfy's own functions, see `tools/make_clean_goldens.py`.
#[test]
fn every_cleaning_equals_pythons() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/expected/clean_text.jsonl");
    let lines = std::fs::read_to_string(path).unwrap();
    let mut count = 0;
    for line in lines.lines() {
        let golden: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = golden["text"].as_str().unwrap();
        let expected = |key: &str| golden.get(key).map_or(Some(text), |value| value.as_str());
        assert_eq!(
            Some(fix_text(text).as_str()),
            expected("fix_text"),
            "{line}"
        );
        assert_eq!(Some(&*html_unescape(text)), expected("unescape"), "{line}");
        for cleaning in Cleaning::ALL {
            let cleaned = cleaning.apply(text);
            assert_eq!(cleaned.as_deref(), expected(cleaning.name()), "{line}");
        }
        count += 1;
    }
    assert!(count > 300, "{count}");
}
