//! What is asked for and what comes back.

use super::config::GenerationConfig;

/// Asked after each token whether the tokens of a sequence, prefix included, end it.
pub type Stop<'a> = &'a (dyn Fn(&[u32]) -> bool + Sync);

/// One source to generate from.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Number of the source among those of the decoder rows.
    pub source: usize,
    /// The decoder's first tokens, the start token included. At least one.
    pub prefix: &'a [u32],
    /// How tokens are chosen.
    pub config: &'a GenerationConfig,
    /// A further reason to end a sequence.
    pub stop: Option<Stop<'a>>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// By this end token, which is the last one.
    Eos(u32),
    /// By [`Request::stop`].
    Stop,
    /// At its longest.
    Length,
    /// By whoever was told of its tokens.
    Cancelled,
}

/// A sequence that was generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// All tokens, the prefix and the end token included.
    pub tokens: Vec<u32>,
    /// Tokens of the prefix.
    pub n_prefix: usize,
    /// Of a beam, the sum of its log-probabilities after all rules, divided by its length to the
    /// power of `length_penalty`: transformers' `sequences_scores`. Else the sum of `log_probs`.
    pub score: f32,
    /// Of each new token the natural logarithm of its probability: of a beam after all rules, else
    /// under the model's own distribution.
    pub log_probs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
}

impl Sequence {
    /// The tokens behind the prefix.
    pub fn new_tokens(&self) -> &[u32] {
        &self.tokens[self.n_prefix..]
    }
}

/// A token as it is chosen. Beams tell of none before they end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    /// Number of the request.
    pub request: usize,
    /// Number of the sequence among those of the request.
    pub sequence: usize,
    /// The token.
    pub token: u32,
    /// Its log-probability under the model's own distribution.
    pub log_prob: f32,
}
