//! `tokenizer.json` through the `tokenizers` crate, with the flags that transformers'
//! fast tokenizers apply on top.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;

use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    AddedToken as CrateToken, Decoder, DecoderWrapper, Model, NormalizedString, Normalizer,
    PostProcessorWrapper, PreTokenizerWrapper, Tokenizer as CrateTokenizer, TruncationDirection,
};

use super::added_tokens::AddedToken;
use super::classes::{T5_ROLES, clean_up_spaces, t5_sentinels};
use super::config::{ROLES, Role, TokenSpec, TokenizerConfig};
use super::fast_check::check_json;
use super::special::list_special;
use crate::{Error, Result};

/// Which of transformers' fast classes the config names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FastClass {
    T5,
    Llama,
    /// `PreTrainedTokenizerFast` and everything else that adds nothing of its own.
    Plain,
}

/// A tokenizer from `tokenizer.json`.
#[derive(Clone, Debug)]
pub(crate) struct FastTokenizer {
    inner: CrateTokenizer,
    clean_up: bool,
    truncate_left: bool,
    pub(crate) eos_id: Option<u32>,
    pub(crate) unk_id: Option<u32>,
    pub(crate) pad_id: Option<u32>,
}

impl FastTokenizer {
    /// Loads the file's content as it is; only truncation and padding are switched off.
    pub(crate) fn from_bytes(json: &[u8]) -> Result<Self> {
        check_json(json)?;
        let mut inner = guarded("load the tokenizer", || CrateTokenizer::from_bytes(json))?;
        let pad_id = inner.get_padding().map(|padding| padding.pad_id);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(from_crate)?;
        check_normalized(&inner)?;
        let mut tokenizer = FastTokenizer {
            unk_id: inner.token_to_id("<unk>"),
            pad_id: inner.token_to_id("<pad>").or(pad_id),
            eos_id: None,
            clean_up: false,
            truncate_left: false,
            inner,
        };
        let framed = tokenizer.encode("", true)?;
        tokenizer.eos_id = framed
            .last()
            .copied()
            .or_else(|| tokenizer.inner.token_to_id("</s>"));
        Ok(tokenizer)
    }

    /// Applies the flags of `tokenizer_config.json` and its neighbours.
    pub(crate) fn with_config(
        mut self,
        class: FastClass,
        config: &TokenizerConfig,
    ) -> Result<Self> {
        self.clean_up = config.clean_up_tokenization_spaces;
        self.truncate_left = config.truncate_left;
        let roles = roles_of(class, config);
        self.add_tokens(class, config, &roles)?;
        self.inner
            .set_encode_special_tokens(config.split_special_tokens);
        self.set_prefix_space(class, config)?;
        let id_of = |role: usize| {
            let token = roles[role].as_ref()?;
            self.inner.token_to_id(token.content())
        };
        self.eos_id = id_of(1).or(self.eos_id);
        self.unk_id = id_of(2).or(self.unk_id);
        self.pad_id = id_of(4).or(self.pad_id);
        if class == FastClass::Llama {
            self.set_llama_frame(config, &roles)?;
        }
        Ok(self)
    }

    /// Adds the config's tokens to the ones in the file: known texts get the config's
    /// flags, new ones are appended in the order of their ids in the config.
    fn add_tokens(
        &mut self,
        class: FastClass,
        config: &TokenizerConfig,
        roles: &[Option<TokenSpec>; 7],
    ) -> Result<()> {
        let additional = match class {
            FastClass::T5 => t5_sentinels(config)?.0,
            _ => config.additional_special_tokens.clone().unwrap_or_default(),
        };
        let special = list_special(roles, &additional, &config.extra_special_tokens);
        let is_special = |content: &str| special.iter().any(|token| token.content() == content);
        let mut listed = config.added_tokens.clone();
        listed.sort_by_key(|&(id, _)| id);
        let mut tokens: Vec<CrateToken> = Vec::new();
        for (_, token) in &listed {
            let special = token.special || is_special(&token.content);
            tokens.push(crate_token(token, special));
        }
        for token in &special {
            let token = match token {
                TokenSpec::Token(token) => crate_token(token, true),
                TokenSpec::Text(text) => {
                    let listed = listed.iter().any(|(_, token)| token.content == *text);
                    if listed || self.is_added(text) {
                        continue;
                    }
                    CrateToken::from(text.clone(), true)
                }
            };
            if !tokens.contains(&token) {
                tokens.push(token);
            }
        }
        let inner = &mut self.inner;
        guarded("add tokens", || inner.add_tokens(tokens))?;
        check_normalized(inner)
    }

    fn is_added(&self, content: &str) -> bool {
        let added = self.inner.get_added_vocabulary();
        added.get_vocab().contains_key(content)
    }

    /// `add_prefix_space`: transformers rebuilds a T5 tokenizer when it is given, which
    /// comes down to another way of putting the first space.
    fn set_prefix_space(&mut self, class: FastClass, config: &TokenizerConfig) -> Result<()> {
        let scheme = match (class, config.add_prefix_space) {
            (FastClass::T5 | FastClass::Llama, Some(true)) => match config.legacy {
                Some(false) => "first",
                _ => "always",
            },
            (FastClass::T5 | FastClass::Llama, Some(false)) => "never",
            (FastClass::T5 | FastClass::Llama, None) => return Ok(()),
            (FastClass::Plain, given) => {
                if let Some(PreTokenizerWrapper::ByteLevel(byte_level)) =
                    self.inner.get_pre_tokenizer()
                {
                    let changed = byte_level.add_prefix_space(given.unwrap_or(false));
                    self.inner.with_pre_tokenizer(Some(changed));
                }
                return Ok(());
            }
        };
        let scheme = serde_json::from_value(scheme.into())
            .map_err(|error| Error::tokenizer(error.to_string()))?;
        match self.inner.get_pre_tokenizer().cloned() {
            Some(PreTokenizerWrapper::Metaspace(mut metaspace)) => {
                if metaspace.prepend_scheme != scheme {
                    metaspace.set_prepend_scheme(scheme);
                    self.inner.with_pre_tokenizer(Some(metaspace));
                    if let Some(DecoderWrapper::Metaspace(mut decoder)) =
                        self.inner.get_decoder().cloned()
                    {
                        decoder.set_prepend_scheme(scheme);
                        self.inner.with_decoder(Some(decoder));
                    }
                }
                Ok(())
            }
            _ => Err(Error::unsupported(
                "`add_prefix_space` is given, but the pre-tokenizer of tokenizer.json is not a \
                 Metaspace, so it cannot be applied",
            )
            .hint("choose the slow tokenizer, or remove the key")),
        }
    }

    /// `LlamaTokenizerFast` frames texts by its own two flags, whatever the file says.
    fn set_llama_frame(
        &mut self,
        config: &TokenizerConfig,
        roles: &[Option<TokenSpec>; 7],
    ) -> Result<()> {
        let frame = [
            (config.add_bos_token.unwrap_or(true), 0),
            (config.add_eos_token.unwrap_or(false), 1),
        ];
        let mut special = Vec::new();
        let mut parts = [String::new(), String::new()];
        for (place, (wanted, role)) in frame.into_iter().enumerate() {
            if !wanted {
                continue;
            }
            let id = roles[role].as_ref().and_then(|token| {
                Some((token.content(), self.inner.token_to_id(token.content())?))
            });
            let Some((content, id)) = id else {
                return Err(Error::tokenizer(format!(
                    "`{}` is to be added to texts, but it is not in the vocabulary",
                    ROLES[role]
                )));
            };
            parts[place] = format!("{content}:0");
            special.push((content.to_owned(), id));
        }
        let template = format!("{} $A:0 {}", parts[0], parts[1]);
        let built = TemplateProcessing::builder()
            .try_single(template.trim())
            .map_err(Error::tokenizer)?
            .special_tokens(special)
            .build()
            .map_err(|error| Error::tokenizer(error.to_string()))?;
        self.inner
            .with_post_processor(Some(PostProcessorWrapper::Template(built)));
        Ok(())
    }

    /// Ids of a text.
    pub(crate) fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        guarded("encode the text", || {
            let encoding = self.inner.encode_fast(text, add_special_tokens)?;
            Ok(encoding.get_ids().to_vec())
        })
    }

    /// Ids of a text of which so much is cut off that at most `max_length` are left,
    /// framing tokens included.
    pub(crate) fn encode_truncated(&self, text: &str, max_length: usize) -> Result<Vec<u32>> {
        guarded("encode the text", || {
            let mut encoding = self.inner.encode_fast(text, false)?;
            let framing =
                self.inner
                    .post_process(self.inner.encode_fast("", false)?, None, true)?;
            let direction = match self.truncate_left {
                true => TruncationDirection::Left,
                false => TruncationDirection::Right,
            };
            encoding.truncate(max_length.saturating_sub(framing.len()), 0, direction);
            // What was cut off hangs on the encoding in pieces of the new length, and a template
            // that repeats the text would combine each of them with each other.
            drop(encoding.take_overflowing());
            let framed = self.inner.post_process(encoding, None, true)?;
            Ok(framed.get_ids().to_vec())
        })
        .and_then(|ids| match ids.len() > max_length {
            // A template is free to repeat the text.
            true => Err(Error::unsupported(format!(
                "the post-processor makes {} ids of a text cut for {max_length}, so it cannot be \
                 cut",
                ids.len()
            ))),
            false => Ok(ids),
        })
    }

    /// Text of a sequence of ids. Ids without a token are left out.
    pub(crate) fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let added = self.inner.get_added_vocabulary();
        // The crate would take the normalized form of an added token here, which is not
        // what the token was written as, and not what the reference decodes.
        let tokens: Vec<String> = ids
            .iter()
            .filter_map(|&id| self.token(id))
            .filter(|token| !(skip_special_tokens && added.is_special_token(token)))
            .collect();
        let text = match self.inner.get_decoder() {
            Some(decoder) => guarded("decode the ids", || decoder.decode(tokens))?,
            None => tokens.join(" "),
        };
        Ok(match self.clean_up {
            true => clean_up_spaces(&text),
            false => text,
        })
    }

    /// The text of a token.
    pub(crate) fn token(&self, id: u32) -> Option<String> {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        match added.get(&id) {
            Some(token) => Some(token.content.clone()),
            None => self.inner.get_model().id_to_token(id),
        }
    }

    /// The id of a token, if it is one.
    pub(crate) fn find(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// One more than the highest id.
    pub(crate) fn vocab_size(&self) -> usize {
        let added = self.inner.get_added_vocabulary().get_vocab().values();
        let added = added.max().map_or(0, |&id| id as usize + 1);
        added.max(self.inner.get_vocab_size(false))
    }

    /// A few words for people.
    pub(crate) fn describe(&self) -> String {
        use tokenizers::ModelWrapper;
        let model = match self.inner.get_model() {
            ModelWrapper::Unigram(_) => "unigram",
            ModelWrapper::BPE(_) => "BPE",
            ModelWrapper::WordPiece(_) => "WordPiece",
            ModelWrapper::WordLevel(_) => "word level",
        };
        format!(
            "tokenizer.json ({model}, {} pieces), {} ids",
            self.inner.get_vocab_size(false),
            self.vocab_size()
        )
    }
}

/// The role tokens after the class's defaults.
fn roles_of(class: FastClass, config: &TokenizerConfig) -> [Option<TokenSpec>; 7] {
    let defaults: [Option<&str>; 7] = match class {
        FastClass::T5 => T5_ROLES,
        FastClass::Llama => [
            Some("<s>"),
            Some("</s>"),
            Some("<unk>"),
            None,
            None,
            None,
            None,
        ],
        FastClass::Plain => [None; 7],
    };
    let mut roles: [Option<TokenSpec>; 7] = Default::default();
    for ((role, default), given) in roles.iter_mut().zip(defaults).zip(&config.roles) {
        *role = match given {
            Role::Unset => default.map(|text| TokenSpec::Text(text.to_owned())),
            Role::None => None,
            Role::Given(token) => Some(token.clone()),
        };
    }
    roles
}

fn crate_token(token: &AddedToken, special: bool) -> CrateToken {
    CrateToken::from(token.content.clone(), special)
        .single_word(token.single_word)
        .lstrip(token.lstrip)
        .rstrip(token.rstrip)
        .normalized(token.normalized)
}

/// Runs a call into the crate. Its errors become ours, and so do its panics.
///
/// The crate indexes and unwraps in places that damaged files may reach.
/// [`super::fast_check`] refuses the ones that are known; this is for the others. No state
/// is shared across the border but the tokenizer itself, which is dropped or only read.
fn guarded<T>(doing: &str, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(from_crate(error)),
        Err(panic) => {
            let reason = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            Err(Error::tokenizer(format!(
                "cannot {doing}: the `tokenizers` crate panicked: {reason}"
            )))
        }
    }
}

/// Refuses added tokens that are looked for in normalized text and are empty there.
///
/// The crate finds such a token everywhere, and takes memory without end while it does.
fn check_normalized(tokenizer: &CrateTokenizer) -> Result<()> {
    let Some(normalizer) = tokenizer.get_normalizer() else {
        return Ok(());
    };
    for (id, token) in tokenizer.get_added_vocabulary().get_added_tokens_decoder() {
        if !token.normalized {
            continue;
        }
        let mut text = NormalizedString::from(token.content.as_str());
        guarded("normalize an added token", || {
            normalizer.normalize(&mut text)
        })?;
        if text.get().is_empty() {
            return Err(Error::tokenizer(format!(
                "added token `{}` has `normalized` true, but its normalized form is empty",
                token.content
            ))
            .at(format_args!("id {id}"))
            .hint("set `normalized` to false to look for the token as it is written"));
        }
    }
    Ok(())
}

fn from_crate(error: tokenizers::Error) -> Error {
    Error::tokenizer(error.to_string())
}

impl FromStr for FastClass {
    type Err = Error;

    fn from_str(class: &str) -> Result<Self> {
        Ok(match class.strip_suffix("Fast").unwrap_or(class) {
            "T5Tokenizer" | "MT5Tokenizer" => FastClass::T5,
            "LlamaTokenizer" => FastClass::Llama,
            _ => FastClass::Plain,
        })
    }
}
