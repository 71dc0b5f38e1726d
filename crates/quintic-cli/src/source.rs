//! Where rows come from: token ids, texts, or texts laid out for a pipeline.

use quintic::batch::{PadRows, PaddedBatch, PaddedMask};
use quintic::preset::Preset;
use quintic::tokenizer::Tokenizer;
use quintic::{Error, Result, TextEncoder};

use crate::args::{EncodeArgs, Store};
use crate::job::Job;
use crate::sink::RowInfo;

/// A job with what is known about its rows.
pub(crate) struct Source {
    pub(crate) job: Job,
    texts: Option<Vec<String>>,
    /// The tokenizer that made the ids, if there was one.
    pub(crate) tokenizer: Option<String>,
    /// The mask that a preset's pipeline hands on, `[rows, length]`.
    image_mask: Option<Vec<bool>>,
    /// Real ids of every row, for formats and tensors that list them.
    ids: Vec<Vec<u32>>,
    pub(crate) n_unknown: usize,
}

impl Source {
    pub(crate) fn from_ids(batch: PaddedBatch, args: &EncodeArgs) -> Result<Self> {
        let by_rows = matches!(batch.mask(), PaddedMask::None | PaddedMask::Keys(_));
        if args.pool.is_some() && !by_rows {
            return Err(Error::unsupported(
                "pooling needs one text a row: no `document_ids` and no [rows, len, len] mask",
            ));
        }
        let pad_rows = args.pad_rows.map_or(PadRows::default(), PadRows::from);
        if args.pool.is_some() && pad_rows == PadRows::Compute {
            return Err(Error::input(
                "pooled vectors leave padding out: drop `--pad-rows compute`",
            ));
        }
        let ids = (0..batch.rows()).map(|row| batch.real_ids(row)).collect();
        let length = batch.len();
        Ok(Source {
            job: Job::Padded {
                batch,
                pad_rows,
                length,
            },
            texts: None,
            tokenizer: None,
            image_mask: None,
            ids,
            n_unknown: 0,
        })
    }

    pub(crate) fn from_texts(
        texts: Vec<String>,
        tokenizer: &Tokenizer,
        encoder: &TextEncoder,
        max_length: Option<usize>,
        args: &EncodeArgs,
    ) -> Result<Self> {
        let ids = texts
            .iter()
            .enumerate()
            .map(|(row, text)| {
                match max_length {
                    Some(max_length) => tokenizer.encode_truncated(text, max_length),
                    None => tokenizer.encode(text, true),
                }
                .and_then(|ids| check_vocabulary(ids, encoder.config().vocab_size))
                .map_err(|e| e.at(format!("text {row}")))
            })
            .collect::<Result<Vec<_>>>()?;
        let job = match args.store {
            Some(Store::Padded) if args.pool.is_none() => {
                let pad_id = tokenizer.pad_id().or(encoder.config().pad_token_id);
                let batch = pad_to_longest(&ids, pad_id.unwrap_or(0))?;
                Job::Padded {
                    length: batch.len(),
                    pad_rows: PadRows::Zero,
                    batch,
                }
            }
            _ => Job::Packed(ids.clone()),
        };
        Ok(Self::of_texts(job, texts, ids, tokenizer, args))
    }

    pub(crate) fn from_preset(
        texts: Vec<String>,
        preset: &Preset,
        tokenizer: &Tokenizer,
        encoder: &TextEncoder,
        args: &EncodeArgs,
    ) -> Result<Self> {
        let pad_id = encoder.config().pad_token_id.unwrap_or(0);
        let prepared = preset.prepare(&texts, tokenizer, pad_id)?;
        let rows = prepared.batch.ids().chunks_exact(prepared.batch.len());
        let ids = rows
            .zip(&prepared.tokens)
            .map(|(row, &tokens)| {
                let row = row[..tokens].iter();
                row.filter_map(|&id| u32::try_from(id).ok()).collect()
            })
            .collect();
        let job = Job::Padded {
            batch: prepared.batch,
            pad_rows: prepared.pad_rows,
            length: prepared.length,
        };
        let source = Self::of_texts(job, texts, ids, tokenizer, args);
        Ok(Source {
            image_mask: prepared.image_mask,
            ..source
        })
    }

    fn of_texts(
        job: Job,
        texts: Vec<String>,
        ids: Vec<Vec<u32>>,
        tokenizer: &Tokenizer,
        args: &EncodeArgs,
    ) -> Self {
        let unknown = tokenizer.unk_id();
        let n_unknown = ids
            .iter()
            .flatten()
            .filter(|&&id| Some(id) == unknown)
            .count();
        if n_unknown > 0 && !args.quiet {
            eprintln!("note: {n_unknown} tokens are not in the vocabulary and became `<unk>`");
        }
        Source {
            job,
            texts: Some(texts),
            tokenizer: Some(tokenizer.describe()),
            image_mask: None,
            ids,
            n_unknown,
        }
    }

    pub(crate) fn info(&self, row: usize, pooled: bool) -> RowInfo<'_> {
        let ids = match &self.job {
            Job::Padded { batch, length, .. } if !pooled => {
                batch.ids()[row * batch.len()..][..*length].to_vec()
            }
            _ => self.ids[row].iter().map(|&id| i64::from(id)).collect(),
        };
        RowInfo {
            text: self.texts.as_ref().map(|texts| texts[row].as_str()),
            ids,
        }
    }

    /// Ids beside the hidden states of texts, so that a file explains itself. A caller who
    /// brought ids has them already.
    pub(crate) fn integers(&self) -> Vec<(&'static str, Vec<usize>, Vec<i64>)> {
        if self.texts.is_none() {
            return Vec::new();
        }
        match &self.job {
            Job::Packed(ids) => {
                let mut starts = vec![0i64];
                starts.extend(ids.iter().scan(0, |end, row| {
                    *end += row.len() as i64;
                    Some(*end)
                }));
                let flat: Vec<i64> = ids.iter().flatten().map(|&id| i64::from(id)).collect();
                vec![
                    ("row_starts", vec![starts.len()], starts),
                    ("input_ids", vec![flat.len()], flat),
                ]
            }
            Job::Padded { batch, length, .. } => {
                let shape = vec![batch.rows(), *length];
                let rows = batch.ids().chunks_exact(batch.len());
                let ids = rows.flat_map(|row| row[..*length].to_vec()).collect();
                let mask = self
                    .ids
                    .iter()
                    .flat_map(|row| (0..*length).map(|position| i64::from(position < row.len())))
                    .collect();
                let mut tensors = vec![
                    ("input_ids", shape.clone(), ids),
                    ("attention_mask", shape.clone(), mask),
                ];
                if let Some(mask) = &self.image_mask {
                    let mask = mask.iter().map(|&seen| i64::from(seen)).collect();
                    tensors.push(("image_mask", shape, mask));
                }
                tensors
            }
        }
    }
}

/// Tokenizers and models that do not belong together often differ in size.
fn check_vocabulary(ids: Vec<u32>, vocab_size: usize) -> Result<Vec<u32>> {
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        None => Ok(ids),
        Some(id) => Err(Error::tokenizer(format!(
            "the tokenizer gives token id {id}, but the model's vocabulary ends at {}",
            vocab_size - 1
        ))
        .hint("is the tokenizer another model's?")),
    }
}

fn pad_to_longest(ids: &[Vec<u32>], pad: u32) -> Result<PaddedBatch> {
    let len = ids.iter().map(Vec::len).max().unwrap_or(0);
    let mut flat = Vec::with_capacity(ids.len() * len);
    let mut mask = Vec::with_capacity(ids.len() * len);
    for row in ids {
        flat.extend(row.iter().map(|&id| i64::from(id)));
        flat.resize(flat.len() + len - row.len(), i64::from(pad));
        mask.extend(std::iter::repeat_n(true, row.len()));
        mask.resize(flat.len(), false);
    }
    PaddedBatch::new(flat, ids.len(), len, PaddedMask::Keys(mask))
}
