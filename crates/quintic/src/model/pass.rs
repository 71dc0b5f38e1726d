//! What a pass through the encoder is given beside its batch.

use crate::batch::PackedBatch;
use crate::config::T5Config;
use crate::{Error, Result};

/// Asked now and then whether to give up; on the thread that started the pass.
pub type Interrupted<'a> = &'a (dyn Fn() -> bool + Sync);

/// What a pass is given beside its batch, and what it keeps. By default nothing.
///
/// ```
/// # fn main() -> quintic::Result<()> {
/// use quintic::batch::PackedBatch;
/// use quintic::{LoadOptions, Pass, TextEncoder};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/goldens/byt5");
/// let encoder = TextEncoder::load(folder, &LoadOptions::default())?;
/// let config = encoder.config();
/// let batch = PackedBatch::from_rows(&[[17, 5, 1]], config.vocab_size)?;
/// let embeddings = vec![0.5; 3 * config.d_model];
/// let pass = Pass {
///     embeddings: Some(&embeddings),
///     keep_attentions: true,
///     ..Pass::default()
/// };
/// let states = encoder.run(&batch, &pass)?;
/// assert_eq!(states.attentions.len(), config.num_layers);
/// assert_eq!(states.attentions[0].len(), config.num_heads * 3 * 3);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Default)]
pub struct Pass<'a> {
    /// Embeddings `[tokens, d_model]` in place of the table's rows. The batch then says which
    /// tokens there are and what they see; its ids are not read.
    pub embeddings: Option<&'a [f32]>,
    /// Factor of every head's attention weights, `[num_layers, n_heads]`: Hugging Face's
    /// `head_mask`.
    pub head_gains: Option<&'a [f32]>,
    /// Whether to keep the hidden states between the layers.
    pub keep_inner: bool,
    /// Whether to keep the attention weights of every layer. Each layer's are computed once
    /// more for it, and take `n_heads * n * n` values for a row of length `n`.
    pub keep_attentions: bool,
    /// Asked before each layer; true ends the pass with
    /// [`ErrorKind::Interrupted`](crate::ErrorKind::Interrupted).
    pub interrupted: Option<Interrupted<'a>>,
}

impl Pass<'_> {
    /// Refuses lists whose lengths do not fit.
    pub(super) fn check(&self, batch: &PackedBatch, config: &T5Config) -> Result<()> {
        let check = |field: &str, found: Option<&[f32]>, names: [&str; 2], sizes: [usize; 2]| {
            let [rows, columns] = sizes;
            match found {
                Some(values) if values.len() != rows * columns => Err(Error::input(format!(
                    "`{field}` has {} elements, expected [{}, {}] with {} = {rows}, {} = {columns}",
                    values.len(),
                    names[0],
                    names[1],
                    names[0],
                    names[1],
                ))),
                _ => Ok(()),
            }
        };
        check(
            "embeddings",
            self.embeddings,
            ["tokens", "d_model"],
            [batch.n_tokens(), config.d_model],
        )?;
        check(
            "head_gains",
            self.head_gains,
            ["num_layers", "n_heads"],
            [config.num_layers, config.num_heads],
        )
    }

    /// Whether it depends on nothing but its batch, and keeps nothing.
    pub(super) fn is_plain(&self) -> bool {
        self.embeddings.is_none()
            && self.head_gains.is_none()
            && !self.keep_inner
            && !self.keep_attentions
    }

    /// Factors of the heads of a layer.
    pub(super) fn gains_of(&self, layer: usize, n_heads: usize) -> Option<&[f32]> {
        self.head_gains
            .map(|gains| &gains[layer * n_heads..(layer + 1) * n_heads])
    }
}

/// An error, if the caller has enough.
pub(super) fn go_on(interrupted: Option<Interrupted<'_>>) -> Result<()> {
    match interrupted {
        Some(interrupted) if interrupted() => Err(Error::interrupted()),
        _ => Ok(()),
    }
}
