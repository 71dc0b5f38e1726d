//! What pipelines do to a prompt before they tokenize it.

mod badness;
mod codec;
mod ftfy;
mod glyph;
mod html;
mod tables;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

/// What a pipeline does to the prompt before it tokenizes it.
///
/// White space is Python's: U+001C to U+001F count, unlike in [`char::is_whitespace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cleaning {
    /// Nothing.
    None,
    /// Lower case, no white space at the ends: what `clean_caption=False` means in the
    /// pipelines that have that switch. Their `clean_caption=True`, which needs an HTML
    /// parser, is not done here.
    LowerStrip,
    /// ftfy's repairs, character references decoded twice, white space to single spaces,
    /// none at the ends.
    Prompt,
    /// Only the quoted texts of the prompt, as HunyuanVideo 1.5 words them.
    GlyphVideo,
    /// Only the quoted texts of the prompt, as HunyuanImage 2.1 words them.
    GlyphImage,
}

impl Cleaning {
    /// Every way of cleaning, for tables that must cover them all.
    pub const ALL: [Cleaning; 5] = [
        Cleaning::None,
        Cleaning::LowerStrip,
        Cleaning::Prompt,
        Cleaning::GlyphVideo,
        Cleaning::GlyphImage,
    ];

    /// Short name, the one used in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Cleaning::None => "none",
            Cleaning::LowerStrip => "lower-strip",
            Cleaning::Prompt => "prompt",
            Cleaning::GlyphVideo => "glyph-video",
            Cleaning::GlyphImage => "glyph-image",
        }
    }

    /// The text to tokenize.
    ///
    /// `None` if there is nothing to encode at all, which only the glyph encoders know: the
    /// pipeline then uses zeros for the whole row and a mask without a token.
    pub fn apply(self, prompt: &str) -> Option<Cow<'_, str>> {
        match self {
            Cleaning::None => Some(Cow::Borrowed(prompt)),
            Cleaning::LowerStrip => Some(Cow::Owned(lower_strip(prompt))),
            Cleaning::Prompt => Some(Cow::Owned(prompt_clean(prompt))),
            Cleaning::GlyphVideo => glyph::hunyuan_video(prompt).map(Cow::Owned),
            Cleaning::GlyphImage => glyph::hunyuan_image(prompt).map(Cow::Owned),
        }
    }
}

/// Python's `text.lower().strip()`.
pub fn lower_strip(text: &str) -> String {
    strip(&text.to_lowercase()).to_owned()
}

/// ftfy's `fix_text`, `html.unescape` twice, white space to single spaces, none at the ends.
pub fn prompt_clean(text: &str) -> String {
    let fixed = fix_text(text);
    let once = html_unescape(&fixed);
    collapse(strip(&html_unescape(&once)))
}

/// `ftfy.fix_text` of ftfy 6.3.1 with its default settings: text that was decoded with the
/// wrong encoding, character references, ligatures, width, quotes, controls, then NFC.
pub fn fix_text(text: &str) -> String {
    ftfy::fix_text(text)
}

/// Python's `html.unescape`.
pub fn html_unescape(text: &str) -> Cow<'_, str> {
    html::unescape(text)
}

/// What Python's `str.isspace` holds for.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Runs of white space as one space, none at the ends.
fn collapse(text: &str) -> String {
    let words: Vec<&str> = text
        .split(is_space)
        .filter(|word| !word.is_empty())
        .collect();
    words.join(" ")
}
