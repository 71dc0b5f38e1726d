//! Conditioning presets: what each diffusion pipeline feeds to its T5 and takes from it.
//!
//! A pipeline is more than its weights: it cleans the prompt or not, pads to a length, hides
//! the padding from T5 or not, and then uses, zeroes or drops what T5 says at padding. Each
//! of these changes the image. A [`Preset`] states the whole contract of one pipeline;
//! `docs/presets.md` shows all of them side by side.

pub mod clean;
mod conditioning;
mod table;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

pub use clean::Cleaning;
pub use conditioning::Conditioning;

use crate::batch::{PadRows, PaddedMask};
use crate::config::Family;
use crate::{Error, ErrorKind, Result};

/// The contract between one diffusers pipeline and its T5.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preset {
    /// Name to ask for.
    pub name: &'static str,
    /// Other names of it, among them pipelines with the same contract.
    pub aliases: &'static [&'static str],
    /// The kind of encoder that the pipeline was made with.
    pub encoder: Encoder,
    /// What is done to the prompt first.
    pub cleaning: Cleaning,
    /// The tokenizer class that the pipeline declares; a checkpoint may name another one.
    pub tokenizer: TokenizerClass,
    /// Tokens of a row, `</s>` included.
    pub max_length: usize,
    /// Whether the tokenizer fills rows up.
    pub padding: Padding,
    /// Whether longer prompts are cut, always before their `</s>`.
    pub truncation: bool,
    /// Whether T5 is told which tokens are padding.
    pub attention_mask: bool,
    /// What the embeddings hold at padding when the pipeline is done with them.
    pub pad_rows: PadRows,
    /// How they came to be so.
    pub tail: Tail,
    /// How many positions the embeddings have.
    pub length: OutputLength,
    /// The mask that goes to the image model beside the embeddings.
    pub mask_out: MaskOut,
    /// Whether the image model looks at padding.
    pub pads_seen: PadsSeen,
    /// Where this was read.
    pub source: &'static str,
    /// What else a user should know; may be empty.
    pub note: &'static str,
}

/// The kind of text encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoder {
    /// T5 v1.0, v1.1 or FLAN.
    T5,
    /// mT5.
    Mt5,
    /// UMT5 or Pile-T5.
    Umt5,
    /// ByT5, here always Glyph-ByT5 with its 1,510 tokens.
    Byt5,
}

/// Tokenizer class of transformers. Slow and fast ones differ in white space and `</s>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenizerClass {
    /// `T5Tokenizer`, the slow one over `spiece.model`.
    T5Slow,
    /// `T5TokenizerFast`, over `tokenizer.json`.
    T5Fast,
    /// Either of the two.
    T5Any,
    /// `AutoTokenizer`: what the checkpoint names, fast if it can be.
    Auto,
    /// `ByT5Tokenizer`.
    Byt5,
}

/// Whether the tokenizer fills rows up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Padding {
    /// To [`Preset::max_length`].
    MaxLength,
    /// Not at all: each prompt is encoded by itself at its own length.
    None,
}

/// What the pipeline does with T5's output at padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tail {
    /// Nothing: what T5 computed there stays.
    Kept,
    /// Multiplies by the mask, so that negative values become negative zeros.
    TimesMask,
    /// Sets it to zero, or cuts it off and fills up with zeros.
    Zeroed,
    /// T5 never saw padding; zeros are appended.
    Appended,
}

/// How many positions the embeddings have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputLength {
    /// [`Preset::max_length`].
    Full,
    /// One more than the longest row of the batch has tokens, where there is room.
    LongestPlusOne,
    /// The tokens alone if the batch is one row, [`Preset::max_length`] otherwise.
    TokensIfAlone,
}

/// The mask that goes to the image model beside the embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MaskOut {
    /// None goes.
    None,
    /// True for tokens.
    Tokens,
    /// True for tokens and for the first padding after them.
    TokensAndFirstPad,
}

/// Whether the image model looks at padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PadsSeen {
    /// At none: it masks, drops or replaces them.
    None,
    /// At all: what stands there matters, zeros too.
    All,
}

impl Preset {
    /// Every preset, in the order of the names.
    pub const ALL: &'static [Preset] = table::PRESETS;

    /// The preset of that name or alias. Case does not matter, nor `_` for `-`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] with the list of the names.
    pub fn by_name(name: &str) -> Result<&'static Preset> {
        let wanted = name.trim().to_ascii_lowercase().replace('_', "-");
        let found = Self::ALL
            .iter()
            .find(|preset| preset.names().any(|known| known == wanted));
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|preset| preset.name).collect();
            let error = Error::new(
                ErrorKind::NotFound,
                format!(
                    "there is no preset `{name}`, expected one of {}",
                    names.join(", ")
                ),
            );
            match nearest(&wanted) {
                Some(near) => error.hint(format!("did you mean `{near}`?")),
                None => error,
            }
        })
    }

    /// Name and aliases.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }

    /// The text to tokenize; `None` if the whole row is zeros without a token, see
    /// [`Cleaning::apply`].
    pub fn clean<'a>(&self, prompt: &'a str) -> Option<Cow<'a, str>> {
        self.cleaning.apply(prompt)
    }

    /// The mask for T5, given which ones of `[rows, max_length]` ids are tokens.
    ///
    /// Rows that the pipeline encodes without padding get a mask too: hidden padding is the
    /// same as none.
    pub fn padded_mask(&self, tokens: Vec<bool>) -> PaddedMask {
        if self.attention_mask || self.padding == Padding::None {
            PaddedMask::Keys(tokens)
        } else {
            PaddedMask::None
        }
    }

    /// Whether values computed at padding reach the image. If not, [`PadRows::Zero`] gives
    /// the same image as [`Preset::pad_rows`] for less work.
    pub fn needs_pad_rows(&self) -> bool {
        self.pad_rows == PadRows::Compute && self.pads_seen == PadsSeen::All
    }

    /// Positions of the embeddings of a batch whose rows have `tokens` tokens each.
    pub fn output_length(&self, tokens: &[usize]) -> usize {
        let length = match (self.length, tokens) {
            (OutputLength::TokensIfAlone, &[alone]) => alone,
            (OutputLength::Full | OutputLength::TokensIfAlone, _) => self.max_length,
            (OutputLength::LongestPlusOne, _) => 1 + tokens.iter().copied().max().unwrap_or(0),
        };
        length.min(self.max_length)
    }

    /// The mask for the image model of a row with `tokens` tokens, `length` positions long;
    /// `None` if the pipeline hands on none.
    pub fn image_mask(&self, tokens: usize, length: usize) -> Option<Vec<bool>> {
        let kept = match self.mask_out {
            MaskOut::None => return None,
            MaskOut::Tokens => tokens,
            MaskOut::TokensAndFirstPad => tokens + 1,
        };
        Some((0..length).map(|position| position < kept).collect())
    }

    /// Checks that a model can be the text encoder of this pipeline.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Input`] if the config names a family that the pipeline cannot mean.
    pub fn check_family(&self, family: Family) -> Result<()> {
        if self.encoder.config_families().contains(&family) {
            return Ok(());
        }
        Err(Error::input(format!(
            "the model is `{}`, but preset `{}` expects {}",
            family.model_type(),
            self.name,
            self.encoder.name()
        ))
        .hint("conditioning made with another encoder is of no use to the image model"))
    }
}

impl Encoder {
    /// Name as people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Encoder::T5 => "T5",
            Encoder::Mt5 => "mT5",
            Encoder::Umt5 => "UMT5",
            Encoder::Byt5 => "ByT5",
        }
    }

    /// What a config of it may call itself: ByT5 is always `t5`, and published mT5 encoders
    /// are too.
    pub const fn config_families(self) -> &'static [Family] {
        match self {
            Encoder::T5 | Encoder::Byt5 => &[Family::T5],
            Encoder::Mt5 => &[Family::Mt5, Family::T5],
            Encoder::Umt5 => &[Family::Umt5],
        }
    }
}

impl TokenizerClass {
    /// Name of the class in transformers.
    pub const fn name(self) -> &'static str {
        match self {
            TokenizerClass::T5Slow => "T5Tokenizer",
            TokenizerClass::T5Fast => "T5TokenizerFast",
            TokenizerClass::T5Any => "T5Tokenizer or T5TokenizerFast",
            TokenizerClass::Auto => "AutoTokenizer",
            TokenizerClass::Byt5 => "ByT5Tokenizer",
        }
    }
}

/// The known name with the fewest edits, if that is few enough to be a slip.
fn nearest(wanted: &str) -> Option<&'static str> {
    Preset::ALL
        .iter()
        .flat_map(Preset::names)
        .map(|name| (edits(wanted, name), name))
        .filter(|&(edits, name)| edits <= name.len().div_ceil(3))
        .min_by_key(|&(edits, _)| edits)
        .map(|(_, name)| name)
}

/// Letters to insert, remove or replace to get from one to the other.
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (above, a) in from.chars().enumerate() {
        let mut diagonal = above;
        row[0] = above + 1;
        for (left, b) in to.chars().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[left + 1];
            row[left + 1] = replaced.min(diagonal + 1).min(row[left] + 1);
        }
    }
    row[row.len() - 1]
}
