use super::*;

#[test]
fn white_space_is_pythons() {
    assert_eq!(lower_strip("\u{1c}\u{a0} A\u{1f}B \u{3000}\n"), "a\u{1f}b");
    assert_eq!(lower_strip("ΟΔΟΣ İ"), "οδος i\u{307}");
    assert_eq!(collapse(" a\u{1c}\u{85}b \u{200b} "), "a b \u{200b}");
}
