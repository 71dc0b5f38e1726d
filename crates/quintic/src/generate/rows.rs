//! What generation needs of a model: decoder rows that go on step by step.

use crate::Result;
use crate::backend::Chosen;

/// Scores of a whole vocabulary.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logits {
    /// Scores, `[places, vocab_size]`.
    pub values: Vec<f32>,
    /// `ln(sum(e^x))` of each place: a score less this is a log-probability.
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

    /// Token ids of a source; none if they are not known, as of hidden states. Guesses are looked up
    /// in them.
    fn source_tokens(&self, source: usize) -> &[u32] {
        let _ = source;
        &[]
    }

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

    /// Feeds each row the tokens that stand for it in `tokens`, at least one a row. What follows the
    /// last `n_scored[row]` of them, each, is what scores can be asked for: at least one a row.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if an id is not below
    /// [`DecoderRows::vocab_size`]; what the backend met on the way.
    fn advance(&mut self, tokens: &[&[u32]], n_scored: &[usize]) -> Result<()>;

    /// Each row forgets so many of the tokens that it was fed last, and is as if it had never been
    /// fed them.
    fn take_back(&mut self, n_tokens: &[usize]);

    /// Scores of the next token behind each token that was to be scored, rows end to end: after
    /// [`DecoderRows::advance`], before rows change.
    ///
    /// # Errors
    ///
    /// What the backend met on the way.
    fn logits(&self) -> Result<Logits>;

    /// The `k` most likely next tokens of each place, all if there are fewer, most likely first and the
    /// lower id first among equals, with their log-probabilities: as [`DecoderRows::logits`]
    /// would say, without writing them out.
    ///
    /// # Errors
    ///
    /// What the backend met on the way.
    fn top(&self, k: usize) -> Result<Vec<Vec<Chosen>>>;
}
