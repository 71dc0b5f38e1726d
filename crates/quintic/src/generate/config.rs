//! What generation is asked to do, in transformers' words.
//!
//! Every field is used, known to have no effect here, or refused: a request that asks for
//! something else than what is done is an error and not a quiet difference. Defaults are those of
//! `GenerationConfig` in transformers 5.23, by which generation ends after 20 new tokens.

use serde_json::{Map, Value};

use crate::config::T5Config;
use crate::{Error, ErrorKind, Result};

/// When beam search ends: see `early_stopping` of transformers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EarlyStopping {
    /// `false`: when no running beam is likely to become better than the worst finished one,
    /// judged by its score at the length that it has now.
    #[default]
    Likely,
    /// `true`: as soon as there are as many finished sequences as beams.
    Full,
    /// `"never"`: when no running beam can become better, judged at the longest length.
    Never,
}

/// How tokens are chosen and when generation ends. Field names and defaults are transformers'.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GenerationConfig {
    /// Longest sequence, the decoder's prefix included; `max_new_tokens` has precedence.
    pub max_length: Option<usize>,
    /// Most tokens behind the prefix.
    pub max_new_tokens: Option<usize>,
    /// Shortest sequence, prefix included.
    pub min_length: usize,
    /// Fewest tokens behind the prefix.
    pub min_new_tokens: Option<usize>,
    /// Draws tokens instead of taking the best.
    pub do_sample: bool,
    /// Beams; 1 is no beam search.
    pub num_beams: usize,
    /// Sequences that a request gives back.
    pub num_return_sequences: usize,
    /// Exponent of the length by which a beam's score is divided.
    pub length_penalty: f64,
    /// When beam search ends.
    pub early_stopping: EarlyStopping,
    /// Divides scores before a draw.
    pub temperature: f32,
    /// Draws among so many of the best; 0 is all.
    pub top_k: usize,
    /// Draws among the fewest tokens whose probabilities reach this.
    pub top_p: f32,
    /// Draws among tokens at least this times as likely as the best.
    pub min_p: Option<f32>,
    /// Draws among the most typical tokens whose probabilities reach this (Meister et al. 2022).
    pub typical_p: f32,
    /// Draws among tokens at least so likely.
    pub epsilon_cutoff: f32,
    /// The same, lowered where the distribution is flat (Hewitt et al. 2022).
    pub eta_cutoff: f32,
    /// Divides the scores of tokens that are there already, negative ones multiplied.
    pub repetition_penalty: f32,
    /// No sequence of so many tokens comes twice; 0 is no rule.
    pub no_repeat_ngram_size: usize,
    /// Sequences of tokens that never come.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// The first token behind the start token.
    pub forced_bos_token_id: Option<u32>,
    /// The last token, if `max_length` is reached.
    pub forced_eos_token_id: Vec<u32>,
    /// Tokens that never come.
    pub suppress_tokens: Vec<u32>,
    /// Tokens that do not come first.
    pub begin_suppress_tokens: Vec<u32>,
    /// From so many new tokens on, the end becomes likelier by this factor a token.
    pub exponential_decay_length_penalty: Option<(usize, f64)>,
    /// Makes scores log-probabilities again after everything else.
    pub renormalize_logits: bool,
    /// Replaces NaN and infinities.
    pub remove_invalid_values: bool,
    /// Tokens that end a sequence.
    pub eos_token_id: Vec<u32>,
    /// What fills up behind the end.
    pub pad_token_id: Option<u32>,
    /// The decoder's first token.
    pub decoder_start_token_id: Option<u32>,
    /// Texts that end a sequence; whoever decodes tokens applies them.
    pub stop_strings: Vec<String>,
    /// Most tokens that are guessed at a time, looked up in the source and in what was generated; 0
    /// guesses none. What is generated stays the same, where scores do: on a CPU of one or 16 tokens
    /// at a time they do. Beams do not guess.
    pub prompt_lookup_num_tokens: usize,
    /// So many tokens at most have to agree with earlier ones before what followed those is a guess.
    pub max_matching_ngram_size: usize,
    /// Seed of draws: the same seed gives the same tokens, whatever else is generated.
    pub seed: u64,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        GenerationConfig {
            max_length: None,
            max_new_tokens: None,
            min_length: 0,
            min_new_tokens: None,
            do_sample: false,
            num_beams: 1,
            num_return_sequences: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::default(),
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            min_p: None,
            typical_p: 1.0,
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            bad_words_ids: Vec::new(),
            forced_bos_token_id: None,
            forced_eos_token_id: Vec::new(),
            suppress_tokens: Vec::new(),
            begin_suppress_tokens: Vec::new(),
            exponential_decay_length_penalty: None,
            renormalize_logits: false,
            remove_invalid_values: false,
            eos_token_id: Vec::new(),
            pad_token_id: None,
            decoder_start_token_id: None,
            stop_strings: Vec::new(),
            prompt_lookup_num_tokens: 0,
            max_matching_ngram_size: 2,
            seed: 0,
        }
    }
}

/// New tokens where nothing says how many.
const DEFAULT_NEW_TOKENS: usize = 20;

/// Most tokens that are guessed at a time: with the one before them they are 16, which a CPU gives
/// the same bits as one.
const MAX_GUESSED: usize = quintic_kernels::Attention::SAME_BITS - 1;

/// Fields without an effect on which tokens are generated.
const WITHOUT_EFFECT: [&str; 21] = [
    "_from_model_config",
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_lookbehind",
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "continuous_batching_config",
    "disable_compile",
    "is_assistant",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "return_dict_in_generate",
    "target_lookbehind",
    "transformers_version",
    "use_cache",
];

/// Fields for which only these values (or null) are what is done here.
const NEUTRAL: [(&str, &[f64]); 11] = [
    ("diversity_penalty", &[0.0]),
    ("encoder_no_repeat_ngram_size", &[0.0]),
    ("encoder_repetition_penalty", &[1.0]),
    ("guidance_scale", &[1.0]),
    ("low_memory", &[0.0]),
    ("num_beam_groups", &[1.0]),
    ("penalty_alpha", &[0.0]),
    ("prefill_chunk_size", &[]),
    ("token_healing", &[0.0]),
    ("top_h", &[]),
    ("max_time", &[]),
];

/// Fields that are refused unless null.
const REFUSED: [&str; 6] = [
    "constraints",
    "dola_layers",
    "force_words_ids",
    "forced_decoder_ids",
    "sequence_bias",
    "watermarking_config",
];

impl GenerationConfig {
    /// What a model says by itself: its `generation_config.json` if it has one, else the
    /// generation fields of `config.json`. Fields that are not known are ignored, as transformers
    /// does with files.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if the bytes are not a JSON object or a field has a wrong type;
    /// [`ErrorKind::Unsupported`] if it asks for what is not done here.
    pub fn of_model(config: &T5Config, generation_json: Option<&[u8]>) -> Result<Self> {
        let mut own = GenerationConfig {
            eos_token_id: config.eos_token_ids.clone(),
            pad_token_id: config.pad_token_id,
            decoder_start_token_id: config.decoder_start_token_id,
            ..GenerationConfig::default()
        };
        if let Some(bytes) = generation_json {
            match serde_json::from_slice(bytes) {
                Ok(Value::Object(fields)) => own.apply(&fields, false)?,
                Ok(_) => return Err(Error::config("expected a JSON object")),
                Err(e) => return Err(Error::config(format!("not valid JSON: {e}"))),
            }
        }
        // The pad token is what published T5 decoders start with.
        own.decoder_start_token_id = own.decoder_start_token_id.or(own.pad_token_id);
        Ok(own)
    }

    /// Puts a user's choices over what is there. A null leaves a field as it is.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Input`] if a field is unknown or has a wrong type or value;
    /// [`ErrorKind::Unsupported`] if it asks for what is not done here.
    pub fn choose(&mut self, fields: &Map<String, Value>) -> Result<()> {
        // A limit that the user sets is meant, whatever the file has.
        if fields.get("max_length").is_some_and(|v| !v.is_null()) {
            self.max_new_tokens = None;
        }
        if fields.get("min_length").is_some_and(|v| !v.is_null()) {
            self.min_new_tokens = None;
        }
        self.apply(fields, true)
    }

    fn apply(&mut self, fields: &Map<String, Value>, is_user: bool) -> Result<()> {
        let kind = match is_user {
            true => ErrorKind::Input,
            false => ErrorKind::Config,
        };
        for (name, value) in fields {
            if value.is_null() || WITHOUT_EFFECT.contains(&name.as_str()) {
                continue;
            }
            let field = Field { name, value, kind };
            if self.set(&field)? {
                continue;
            }
            let neutral = NEUTRAL.iter().find(|(known, _)| known == name);
            let number = value
                .as_f64()
                .or_else(|| value.as_bool().map(|flag| f64::from(u8::from(flag))));
            match (neutral, number) {
                (Some((_, neutral)), Some(number)) if neutral.contains(&number) => {}
                (Some(_), _) => return Err(field.unsupported()),
                (None, _) if REFUSED.contains(&name.as_str()) => return Err(field.unsupported()),
                (None, _) if is_user => {
                    return Err(
                        Error::input("there is no such generation option").at(format!("`{name}`"))
                    );
                }
                (None, _) => {}
            }
        }
        self.check(kind)
    }

    /// Sets the field of that name, if there is one.
    fn set(&mut self, field: &Field<'_>) -> Result<bool> {
        match field.name {
            "max_length" => self.max_length = Some(field.count()?),
            "max_new_tokens" => self.max_new_tokens = Some(field.count()?),
            "min_length" => self.min_length = field.count()?,
            "min_new_tokens" => self.min_new_tokens = Some(field.count()?),
            "do_sample" => self.do_sample = field.flag()?,
            "num_beams" => self.num_beams = field.count()?,
            "num_return_sequences" => self.num_return_sequences = field.count()?,
            "length_penalty" => self.length_penalty = field.number()?,
            "early_stopping" => {
                self.early_stopping = match field.value {
                    Value::Bool(true) => EarlyStopping::Full,
                    Value::Bool(false) => EarlyStopping::Likely,
                    Value::String(text) if text == "never" => EarlyStopping::Never,
                    _ => return Err(field.wrong("true, false or \"never\"")),
                }
            }
            "temperature" => self.temperature = field.number()? as f32,
            "top_k" => self.top_k = field.count()?,
            "top_p" => self.top_p = field.number()? as f32,
            "min_p" => self.min_p = Some(field.number()? as f32),
            "typical_p" => self.typical_p = field.number()? as f32,
            "epsilon_cutoff" => self.epsilon_cutoff = field.number()? as f32,
            "eta_cutoff" => self.eta_cutoff = field.number()? as f32,
            "repetition_penalty" => self.repetition_penalty = field.number()? as f32,
            "no_repeat_ngram_size" => self.no_repeat_ngram_size = field.count()?,
            "bad_words_ids" => {
                let lists = field.list("a list of lists of token ids")?;
                let words = lists.iter().map(|value| Field { value, ..*field }.tokens());
                self.bad_words_ids = words.collect::<Result<_>>()?;
                if self.bad_words_ids.iter().any(Vec::is_empty) {
                    return Err(field.wrong("lists of at least one token id"));
                }
            }
            "forced_bos_token_id" => self.forced_bos_token_id = Some(field.token()?),
            "forced_eos_token_id" => self.forced_eos_token_id = field.tokens()?,
            "suppress_tokens" => self.suppress_tokens = field.tokens()?,
            "begin_suppress_tokens" => self.begin_suppress_tokens = field.tokens()?,
            "exponential_decay_length_penalty" => {
                let wanted = "[start, factor]";
                self.exponential_decay_length_penalty = match field.list(wanted)? {
                    [start, factor] => match (start.as_u64(), factor.as_f64()) {
                        (Some(start), Some(factor)) => Some((start as usize, factor)),
                        _ => return Err(field.wrong(wanted)),
                    },
                    _ => return Err(field.wrong(wanted)),
                };
            }
            "renormalize_logits" => self.renormalize_logits = field.flag()?,
            "remove_invalid_values" => self.remove_invalid_values = field.flag()?,
            "eos_token_id" => self.eos_token_id = field.tokens()?,
            "pad_token_id" => self.pad_token_id = Some(field.token()?),
            "decoder_start_token_id" => self.decoder_start_token_id = Some(field.token()?),
            "stop_strings" => {
                let texts = match field.value {
                    Value::String(_) => std::slice::from_ref(field.value),
                    _ => field.list("a text or a list of texts")?,
                };
                let text = |value: &Value| match value.as_str() {
                    Some(text) if !text.is_empty() => Ok(text.to_owned()),
                    _ => Err(field.wrong("texts that are not empty")),
                };
                self.stop_strings = texts.iter().map(text).collect::<Result<_>>()?;
            }
            "prompt_lookup_num_tokens" => self.prompt_lookup_num_tokens = field.count()?,
            "max_matching_ngram_size" => self.max_matching_ngram_size = field.count()?,
            "seed" => {
                self.seed = field
                    .value
                    .as_u64()
                    .ok_or_else(|| field.wrong("a whole number from 0 on"))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn check(&self, kind: ErrorKind) -> Result<()> {
        let share = |x: f32| x > 0.0 && x <= 1.0;
        let positive = |x: f32| x > 0.0 && x.is_finite();
        let cutoff = |x: f32| (0.0..1.0).contains(&x);
        let checks: [(&str, f64, bool, &str); 15] = [
            (
                "num_beams",
                self.num_beams as f64,
                self.num_beams > 0,
                "at least 1",
            ),
            (
                "num_return_sequences",
                self.num_return_sequences as f64,
                self.num_return_sequences > 0,
                "at least 1",
            ),
            (
                "max_new_tokens",
                self.max_new_tokens.unwrap_or(1) as f64,
                self.max_new_tokens != Some(0),
                "at least 1",
            ),
            (
                "length_penalty",
                self.length_penalty,
                self.length_penalty.is_finite(),
                "a number",
            ),
            (
                "temperature",
                f64::from(self.temperature),
                positive(self.temperature),
                "above 0",
            ),
            (
                "top_p",
                f64::from(self.top_p),
                share(self.top_p),
                "above 0, at most 1",
            ),
            (
                "min_p",
                f64::from(self.min_p.unwrap_or(0.0)),
                (0.0..=1.0).contains(&self.min_p.unwrap_or(0.0)),
                "0 to 1",
            ),
            (
                "typical_p",
                f64::from(self.typical_p),
                share(self.typical_p),
                "above 0, at most 1",
            ),
            (
                "epsilon_cutoff",
                f64::from(self.epsilon_cutoff),
                cutoff(self.epsilon_cutoff),
                "at least 0, below 1",
            ),
            (
                "eta_cutoff",
                f64::from(self.eta_cutoff),
                cutoff(self.eta_cutoff),
                "at least 0, below 1",
            ),
            (
                "repetition_penalty",
                f64::from(self.repetition_penalty),
                positive(self.repetition_penalty),
                "above 0",
            ),
            (
                "num_return_sequences",
                self.num_return_sequences as f64,
                self.num_return_sequences == 1 || self.do_sample || self.num_beams > 1,
                "1 without `num_beams` or `do_sample`, which give but one sequence",
            ),
            (
                "prompt_lookup_num_tokens",
                self.prompt_lookup_num_tokens as f64,
                self.prompt_lookup_num_tokens <= MAX_GUESSED,
                "0 to 15",
            ),
            (
                "prompt_lookup_num_tokens",
                self.prompt_lookup_num_tokens as f64,
                self.prompt_lookup_num_tokens == 0 || self.num_beams == 1,
                "0 with `num_beams`: beams do not guess",
            ),
            (
                "max_matching_ngram_size",
                self.max_matching_ngram_size as f64,
                self.max_matching_ngram_size > 0,
                "at least 1",
            ),
        ];
        for (name, found, is_good, expected) in checks {
            if !is_good {
                return Err(
                    Error::new(kind, format!("found {found}, expected {expected}"))
                        .at(format!("`{name}`")),
                );
            }
        }
        if self.num_beams > 1 && self.num_return_sequences > self.num_beams {
            return Err(Error::new(
                kind,
                format!(
                    "found {}, expected at most `num_beams` = {}",
                    self.num_return_sequences, self.num_beams
                ),
            )
            .at("`num_return_sequences`"));
        }
        Ok(())
    }

    /// Refuses tokens that the vocabulary does not have.
    pub(super) fn check_tokens(&self, vocab_size: usize) -> Result<()> {
        let lists: [(&str, &[u32]); 6] = [
            ("forced_bos_token_id", self.forced_bos_token_id.as_slice()),
            ("forced_eos_token_id", &self.forced_eos_token_id),
            ("suppress_tokens", &self.suppress_tokens),
            ("begin_suppress_tokens", &self.begin_suppress_tokens),
            ("eos_token_id", &self.eos_token_id),
            (
                "decoder_start_token_id",
                self.decoder_start_token_id.as_slice(),
            ),
        ];
        let words = self
            .bad_words_ids
            .iter()
            .map(|word| ("bad_words_ids", &word[..]));
        for (name, ids) in lists.into_iter().chain(words) {
            if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
                return Err(Error::input(format!(
                    "token id {id} is outside the vocabulary of {vocab_size}"
                ))
                .at(format!("`{name}`")));
            }
        }
        Ok(())
    }

    /// The longest sequence behind a prefix of this length, prefix included.
    pub fn longest(&self, prefix: usize) -> usize {
        match (self.max_new_tokens, self.max_length) {
            (Some(new), _) => prefix + new,
            (None, Some(length)) => length,
            (None, None) => prefix + DEFAULT_NEW_TOKENS,
        }
    }
}

/// A field that is being read.
#[derive(Clone, Copy)]
struct Field<'a> {
    name: &'a str,
    value: &'a Value,
    kind: ErrorKind,
}

impl<'a> Field<'a> {
    fn wrong(&self, expected: &str) -> Error {
        let found = format!("found {}, expected {expected}", self.value);
        Error::new(self.kind, found).at(format!("`{}`", self.name))
    }

    fn unsupported(&self) -> Error {
        Error::unsupported(format!("found {}, which is not done here", self.value))
            .at(format!("`{}`", self.name))
    }

    fn count(&self) -> Result<usize> {
        let count = self.value.as_u64().and_then(|n| usize::try_from(n).ok());
        count.ok_or_else(|| self.wrong("a whole number from 0 on"))
    }

    fn flag(&self) -> Result<bool> {
        self.value
            .as_bool()
            .ok_or_else(|| self.wrong("true or false"))
    }

    fn number(&self) -> Result<f64> {
        self.value.as_f64().ok_or_else(|| self.wrong("a number"))
    }

    fn token(&self) -> Result<u32> {
        let id = self.value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| self.wrong("a token id"))
    }

    fn list(&self, expected: &str) -> Result<&'a [Value]> {
        let list = self.value.as_array().map(Vec::as_slice);
        list.ok_or_else(|| self.wrong(expected))
    }

    /// One token id or several.
    fn tokens(&self) -> Result<Vec<u32>> {
        match self.value {
            Value::Array(ids) => ids
                .iter()
                .map(|value| Field { value, ..*self }.token())
                .collect(),
            _ => Ok(vec![self.token()?]),
        }
    }
}
