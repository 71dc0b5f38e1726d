//! What generation needs of a model: decoder rows that go on step by step.

use crate::Result;
use crate::backend::Chosen;

/// Scores of a whole vocabulary.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logits {
    /// Scores, `[rows, vocab_size]`.
    pub values: Vec<f32>,
    /// `ln(sum(e^x))` of each row: a score less this is a log-probability.
    pub log_sums: Vec<f64>,
}

/// Rows of a decoder, each with a source that it attends to and the tokens that it has been fed.
///
/// Rows are numbered from 0 and come and go between steps: [`DecoderRows::admit`] adds some at
/// the end, [`DecoderRows::select`] repeats, reorders and drops them.
pub trait DecoderRows {
    /// Number of token ids that have a score.
    fn vocab_size(&self) -> usize;

    /// Number of rows.
    fn n_rows(&self) -> usize;

    /// Adds one row at the end for each of `sources`, numbers of sources that the implementation
    /// knows; no token has been fed to it yet.
    ///
    /// # Errors
    ///
    /// Those of encoding the sources. No row has been added then.
    fn admit(&mut self, sources: &[usize]) -> Result<()>;

    /// Row `i` becomes what row `rows[i]` was. A row that is not named is dropped; one that is
    /// named more than once goes on in several ways.
    fn select(&mut self, rows: &[usize]);

    /// Feeds each row the tokens that stand for it in `tokens`, at least one a row, at most as
    /// many as rows have room for.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if an id is not below
    /// [`DecoderRows::vocab_size`]; what the backend met on the way.
    fn advance(&mut self, tokens: &[&[u32]]) -> Result<()>;

    /// Scores of each row's next token: after [`DecoderRows::advance`], before the next
    /// [`DecoderRows::select`] or [`DecoderRows::admit`].
    ///
    /// # Errors
    ///
    /// What the backend met on the way.
    fn logits(&self) -> Result<Logits>;

    /// Each row's `k` most likely next tokens, all if there are fewer, most likely first and the
    /// lower id first among equals, with their log-probabilities: as [`DecoderRows::logits`]
    /// would say, without writing them out.
    ///
    /// # Errors
    ///
    /// What the backend met on the way.
    fn top(&self, k: usize) -> Result<Vec<Vec<Chosen>>>;
}
