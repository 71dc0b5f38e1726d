//! Prompts to a padded batch, as a preset's pipeline lays it out.

use super::Preset;
use crate::batch::{PadRows, PaddedBatch};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// A batch of prompts ready to encode, and the shape that the pipeline expects back.
#[derive(Clone, Debug, PartialEq)]
pub struct Conditioning {
    /// Ids `[rows, max_length]` with the mask that T5 gets.
    pub batch: PaddedBatch,
    /// What is computed at padding.
    pub pad_rows: PadRows,
    /// Tokens of each row, `</s>` included; 0 for a prompt that conditions on nothing.
    pub tokens: Vec<usize>,
    /// Positions of the embeddings, at most `max_length`; later ones are cut off.
    pub length: usize,
    /// The mask for the image model, `[rows, length]`, if the pipeline hands one on.
    pub image_mask: Option<Vec<bool>>,
}

impl Preset {
    /// Cleans, tokenizes, cuts and pads prompts. `pad_id` fills rows up where the tokenizer
    /// names no padding token.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if there is no prompt, or a row is too
    /// long for a pipeline that does not cut; whatever the tokenizer reports.
    pub fn prepare<S: AsRef<str>>(
        &self,
        prompts: &[S],
        tokenizer: &Tokenizer,
        pad_id: u32,
    ) -> Result<Conditioning> {
        let pad_id = i64::from(tokenizer.pad_id().unwrap_or(pad_id));
        let mut ids = Vec::with_capacity(prompts.len() * self.max_length);
        let mut mask = Vec::with_capacity(ids.capacity());
        let mut tokens = Vec::with_capacity(prompts.len());
        for (row, prompt) in prompts.iter().enumerate() {
            let row_ids = self
                .row_ids(prompt.as_ref(), tokenizer)
                .map_err(|e| e.at(format!("prompt {row}")))?;
            tokens.push(row_ids.len());
            mask.extend((0..self.max_length).map(|position| position < row_ids.len()));
            ids.extend(row_ids.into_iter().map(i64::from));
            ids.resize(mask.len(), pad_id);
        }
        let length = self.output_length(&tokens);
        let image_mask = tokens
            .iter()
            .map(|&tokens| self.image_mask(tokens, length))
            .collect::<Option<Vec<_>>>()
            .map(|rows| rows.concat());
        let mask = self.padded_mask(mask);
        let batch = PaddedBatch::new(ids, prompts.len(), self.max_length, mask)?;
        Ok(Conditioning {
            batch,
            pad_rows: self.pad_rows,
            tokens,
            length,
            image_mask,
        })
    }

    fn row_ids(&self, prompt: &str, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let Some(text) = self.clean(prompt) else {
            return Ok(Vec::new());
        };
        if self.truncation {
            return tokenizer.encode_truncated(&text, self.max_length);
        }
        let ids = tokenizer.encode(&text, true)?;
        if ids.len() > self.max_length {
            return Err(Error::input(format!(
                "the prompt has {} tokens, expected at most {} for preset `{}`",
                ids.len(),
                self.max_length,
                self.name
            )));
        }
        Ok(ids)
    }

    /// The same contract with another length: several pipelines let their callers choose.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) for a length of 0.
    pub fn with_max_length(&self, max_length: usize) -> Result<Preset> {
        if max_length == 0 {
            return Err(Error::input("the length is 0, expected at least 1"));
        }
        Ok(Preset {
            max_length,
            ..self.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::PaddedMask;

    fn prepare(preset: &str, prompts: &[&str]) -> Conditioning {
        let tokenizer = Tokenizer::bytes(125).unwrap();
        let preset = Preset::by_name(preset).unwrap().with_max_length(6).unwrap();
        preset.prepare(prompts, &tokenizer, 0).unwrap()
    }

    #[test]
    fn flux_pads_and_hides_nothing() {
        let found = prepare("flux", &["ab", "long prompt"]);
        assert_eq!(found.batch.ids()[..6], [100, 101, 1, 0, 0, 0]);
        assert_eq!(found.batch.ids()[11], 1, "a cut prompt keeps its end token");
        assert_eq!(found.batch.mask(), &PaddedMask::None);
        assert_eq!(
            (found.tokens, found.length, found.image_mask),
            (vec![3, 6], 6, None)
        );
    }

    #[test]
    fn wan_masks_and_zeroes() {
        let found = prepare("wan", &["a  &amp; ", ""]);
        // `a &` and the end.
        assert_eq!(found.batch.ids()[..6], [100, 35, 41, 1, 0, 0]);
        let keys: Vec<bool> = [1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0]
            .map(|k| k == 1)
            .to_vec();
        assert_eq!(found.batch.mask(), &PaddedMask::Keys(keys));
        assert_eq!(found.pad_rows, PadRows::Zero);
    }

    #[test]
    fn kandinsky_cuts_after_the_longest_row() {
        let found = prepare("kandinsky3", &["a", "abc"]);
        assert_eq!((found.tokens, found.length), (vec![2, 4], 5));
        let mask: Vec<bool> = [1, 1, 0, 0, 0, 1, 1, 1, 1, 0].map(|k| k == 1).to_vec();
        assert_eq!(found.image_mask, Some(mask));
    }

    #[test]
    fn no_prompts_and_no_length_are_refused() {
        let tokenizer = Tokenizer::bytes(125).unwrap();
        let preset = Preset::by_name("flux").unwrap();
        assert!(preset.prepare::<&str>(&[], &tokenizer, 0).is_err());
        assert!(preset.with_max_length(0).is_err());
    }
}
