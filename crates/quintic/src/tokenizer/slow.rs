//! `T5Tokenizer` and `LlamaTokenizer` of transformers 4.57.6 on top of a SentencePiece
//! model.

use std::collections::HashSet;

use super::added_tokens::is_python_space;
use super::classes::{SlowClass, clean_up_spaces, llama_defaults, t5_defaults};
use super::config::TokenizerConfig;
use super::sentencepiece::{EncodedPiece, SPACE_SYMBOL, SentencePiece};
use super::special::{BaseVocab, SpecialTokens};
use crate::{Error, Result};

/// A SentencePiece tokenizer with Hugging Face's rules for added tokens.
#[derive(Clone, Debug)]
pub(crate) struct SlowTokenizer {
    class: SlowClass,
    model: SentencePiece,
    tokens: SpecialTokens,
    /// The final id of each piece: another one if an added token has the piece's text.
    piece_ids: Vec<u32>,
    stand_alone: HashSet<String>,
    special_ids: HashSet<u32>,
    legacy: bool,
    add_prefix_space: bool,
    split_special_tokens: bool,
    clean_up: bool,
    bos_id: Option<u32>,
    eos_id: Option<u32>,
    pub(crate) unk_id: Option<u32>,
    pub(crate) pad_id: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    unk_token: String,
    /// Number of tokens that the text of the unknown token is cut into.
    unk_token_len: usize,
}

/// A token before ids are given out.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// A piece of the SentencePiece model.
    Piece(u32),
    /// An added token, or characters without a piece.
    Text(String),
}

impl SlowTokenizer {
    /// Builds the tokenizer as the class's constructor does with the config's arguments.
    pub(crate) fn new(
        model: SentencePiece,
        class: SlowClass,
        config: &TokenizerConfig,
    ) -> Result<Self> {
        let legacy = config.legacy.unwrap_or(true);
        let defaults = match class {
            SlowClass::T5 => t5_defaults(model.len(), config)?,
            SlowClass::Llama => llama_defaults(config),
        };
        let tokens = SpecialTokens::new(defaults, config, &model)?;
        let model = match legacy || config.from_slow {
            true => model,
            false => model.without_dummy_prefix(),
        };
        let id_of = |token: &str| match tokens.added.id_of(token) {
            Some(id) => id,
            None => model.id_of(token),
        };
        let role_id = |name: &str| tokens.role(name).map(id_of);
        let unk_token = tokens.role("unk_token").unwrap_or_default().to_owned();
        let eos_id = role_id("eos_token");
        let (add_bos, add_eos) = match class {
            SlowClass::T5 => (false, true),
            SlowClass::Llama => (
                config.add_bos_token.unwrap_or(true),
                config.add_eos_token.unwrap_or(false),
            ),
        };
        if add_eos && eos_id.is_none() {
            return Err(Error::tokenizer("`eos_token` is null, expected a token"));
        }
        if add_bos && role_id("bos_token").is_none() {
            return Err(Error::tokenizer("`bos_token` is null, expected a token"));
        }
        if !legacy && unk_token.is_empty() {
            return Err(Error::tokenizer(
                "`unk_token` is null, but `legacy` is false, which needs one",
            ));
        }
        Ok(SlowTokenizer {
            class,
            piece_ids: (0..model.len() as u32)
                .map(|id| id_of(model.piece(id).unwrap_or_default()))
                .collect(),
            stand_alone: tokens.stand_alone(model.len() as u32, id_of),
            special_ids: tokens.all().iter().map(|token| id_of(token)).collect(),
            legacy,
            add_prefix_space: config.add_prefix_space.unwrap_or(true),
            split_special_tokens: config.split_special_tokens,
            clean_up: config.clean_up_tokenization_spaces,
            bos_id: role_id("bos_token"),
            eos_id,
            unk_id: role_id("unk_token"),
            pad_id: role_id("pad_token"),
            add_bos,
            add_eos,
            unk_token_len: count_tokens(&model, &unk_token)?,
            unk_token,
            model,
            tokens,
        })
    }

    pub(crate) fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }

    /// Ids of a text, without the ones that frame it.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let tokens = self.tokenize(text)?;
        Ok(tokens.iter().map(|token| self.token_id(token)).collect())
    }

    /// Number of ids that [`SlowTokenizer::frame`] adds to a text.
    pub(crate) fn n_framing(&self) -> usize {
        usize::from(self.add_bos) + usize::from(self.add_eos)
    }

    /// Adds EOS and BOS as the class does. T5 does not double an EOS that is there.
    pub(crate) fn frame(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if self.add_bos {
            ids.splice(0..0, self.bos_id);
        }
        let doubled = self.class == SlowClass::T5 && ids.last().copied() == self.eos_id;
        if self.add_eos && !doubled {
            ids.extend(self.eos_id);
        }
        ids
    }

    fn tokenize(&self, text: &str) -> Result<Vec<Token>> {
        if self.legacy || text.is_empty() {
            return self.tokenize_parts(text);
        }
        let mut prefixed = String::with_capacity(text.len() + 3);
        if self.add_prefix_space {
            prefixed.push_str(SPACE_SYMBOL);
        }
        prefixed.push_str(&text.replace(SPACE_SYMBOL, " "));
        let mut tokens = self.tokenize_parts(&prefixed)?;
        if let [first, second, ..] = tokens.as_slice()
            && self.text_of(first) == SPACE_SYMBOL
            && self.tokens.is_special(self.text_of(second))
        {
            tokens.remove(0);
        }
        Ok(tokens)
    }

    /// Cuts the text at the added tokens, and the rest into pieces.
    fn tokenize_parts(&self, text: &str) -> Result<Vec<Token>> {
        let mut tokens = Vec::new();
        if self.split_special_tokens {
            if !text.is_empty() {
                self.push_pieces(text, &mut tokens)?;
            }
            return Ok(tokens);
        }
        for part in self.tokens.added.split(text) {
            if self.tokens.added.id_of(&part).is_some() {
                tokens.push(Token::Text(part));
            } else {
                self.push_pieces(&part, &mut tokens)?;
            }
        }
        Ok(tokens)
    }

    /// Cuts one part into pieces.
    ///
    /// Without the legacy behaviour the model adds no space in front and would drop the
    /// one that is there. So that it stays, the unknown token is put before the text and
    /// its tokens are taken off again.
    fn push_pieces(&self, text: &str, tokens: &mut Vec<Token>) -> Result<()> {
        if self.legacy || !text.starts_with(['\u{2581}', ' ']) {
            return push_pieces(&self.model, text, tokens);
        }
        let start = tokens.len();
        push_pieces(&self.model, &(self.unk_token.clone() + text), tokens)?;
        if tokens.len() - start >= self.unk_token_len {
            tokens.drain(start..start + self.unk_token_len);
        }
        Ok(())
    }

    fn text_of<'t>(&'t self, token: &'t Token) -> &'t str {
        match token {
            Token::Piece(id) => self.model.piece(*id).unwrap_or_default(),
            Token::Text(text) => text,
        }
    }

    fn token_id(&self, token: &Token) -> u32 {
        match token {
            Token::Piece(id) => self.piece_ids[*id as usize],
            Token::Text(text) => self.id_of(text),
        }
    }

    /// The id of a token; the unknown piece's for any other text.
    pub(crate) fn id_of(&self, token: &str) -> u32 {
        match self.tokens.added.id_of(token) {
            Some(id) => id,
            None => self.model.id_of(token),
        }
    }

    /// The id of a token, if it is one.
    pub(crate) fn find(&self, token: &str) -> Option<u32> {
        self.tokens
            .added
            .id_of(token)
            .or_else(|| self.model.find(token))
    }

    /// The text of a token.
    pub(crate) fn token(&self, id: u32) -> Option<&str> {
        match self.tokens.added.get(id) {
            Some(token) => Some(&token.content),
            None => self.model.piece(id),
        }
    }

    /// One more than the highest id.
    pub(crate) fn vocab_size(&self) -> usize {
        let added = self.tokens.added.iter().map(|(id, _)| id as usize + 1);
        added.chain([self.model.len()]).max().unwrap_or(0)
    }

    /// Text of a sequence of ids.
    pub(crate) fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let mut texts: Vec<String> = Vec::new();
        let mut open: Vec<&str> = Vec::new();
        for &id in ids {
            if skip_special_tokens && self.special_ids.contains(&id) {
                continue;
            }
            let token = self.token(id).ok_or_else(|| {
                Error::input(format!(
                    "id {id} is not in the vocabulary of {} ids",
                    self.vocab_size()
                ))
            })?;
            if skip_special_tokens && self.tokens.is_special(token) {
                continue;
            }
            if self.stand_alone.contains(token) {
                if !open.is_empty() {
                    let text = self.join(&open);
                    if !text.is_empty() {
                        texts.push(text);
                    }
                    open.clear();
                }
                texts.push(token.to_owned());
            } else {
                open.push(token);
            }
        }
        if !open.is_empty() {
            texts.push(self.join(&open));
        }
        let text = texts.join(" ");
        Ok(match self.clean_up {
            true => clean_up_spaces(&text),
            false => text,
        })
    }

    /// Puts neighbouring tokens together. Special tokens are not pieces to the model, and
    /// the two classes put spaces around them by different rules.
    fn join(&self, tokens: &[&str]) -> String {
        let mut tokens = tokens.to_vec();
        if self.add_prefix_space
            && let Some(shorter) = tokens[0].strip_prefix(SPACE_SYMBOL)
        {
            tokens[0] = shorter;
        }
        let t5 = self.class == SlowClass::T5;
        let mut text = String::new();
        let mut open: Vec<&str> = Vec::new();
        let mut after_special = false;
        for (index, token) in tokens.into_iter().enumerate() {
            if self.tokens.is_special(token) {
                if !after_special && (t5 || (index != 0 && self.legacy)) {
                    text.push(' ');
                }
                text.push_str(&self.model.decode(&open));
                text.push_str(token);
                open.clear();
                after_special = true;
            } else {
                let spaced = after_special && index == 1 && self.add_prefix_space;
                if !t5 && spaced && !token.starts_with(SPACE_SYMBOL) {
                    text.push(' ');
                }
                open.push(token);
                after_special = false;
            }
        }
        text.push_str(&self.model.decode(&open));
        match t5 {
            true => text.trim_matches(is_python_space).to_owned(),
            false => text,
        }
    }

    /// A few words for people.
    pub(crate) fn describe(&self) -> String {
        let class = match self.class {
            SlowClass::T5 => "T5Tokenizer",
            SlowClass::Llama => "LlamaTokenizer",
        };
        format!(
            "{class} over SentencePiece ({}), {} ids, legacy {}",
            self.model.describe(),
            self.vocab_size(),
            self.legacy
        )
    }
}

impl BaseVocab for SentencePiece {
    fn len(&self) -> u32 {
        SentencePiece::len(self) as u32
    }

    fn token(&self, id: u32) -> Option<String> {
        self.piece(id).map(str::to_owned)
    }

    fn find_last(&self, token: &str) -> Option<u32> {
        SentencePiece::find_last(self, token)
    }
}

fn push_pieces(model: &SentencePiece, text: &str, tokens: &mut Vec<Token>) -> Result<()> {
    model.encode_with(text, |piece| {
        tokens.push(match piece {
            EncodedPiece::Known(id) => Token::Piece(id),
            EncodedPiece::Unknown(text) => Token::Text(text.to_owned()),
        });
    })
}

fn count_tokens(model: &SentencePiece, text: &str) -> Result<usize> {
    let mut tokens = Vec::new();
    push_pieces(model, text, &mut tokens)?;
    Ok(tokens.len())
}
