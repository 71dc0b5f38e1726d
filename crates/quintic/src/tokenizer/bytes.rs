//! ByT5: a token is a byte of the UTF-8 text.

use std::collections::HashSet;

use super::added_tokens::AddedToken;
use super::classes::clean_up_spaces;
use super::config::{TokenSpec, TokenizerConfig};
use super::special::{BaseVocab, ClassDefaults, SpecialTokens};
use crate::{Error, Result};

/// Ids 0, 1 and 2 are padding, end of sequence and unknown; byte `b` is id `b + 3`.
const OFFSET: u32 = 3;
const N_BYTES: u32 = 256;
/// Sentinels when the config does not say how many.
const DEFAULT_EXTRA_IDS: u32 = 125;

/// `ByT5Tokenizer` of transformers 4.57.6.
#[derive(Clone, Debug)]
pub(crate) struct ByteTokenizer {
    tokens: SpecialTokens,
    stand_alone: HashSet<String>,
    special_ids: HashSet<u32>,
    split_special_tokens: bool,
    clean_up: bool,
    eos_id: u32,
    pub(crate) unk_id: Option<u32>,
    pub(crate) pad_id: Option<u32>,
}

/// The 3 special ids and the bytes, each byte written as the character of its number.
struct ByteVocab;

impl BaseVocab for ByteVocab {
    fn len(&self) -> u32 {
        OFFSET + N_BYTES
    }

    fn token(&self, id: u32) -> Option<String> {
        byte_of(id).map(|byte| char::from(byte).to_string())
    }

    fn find_last(&self, token: &str) -> Option<u32> {
        let mut characters = token.chars();
        match (characters.next(), characters.next()) {
            (Some(character), None) => u8::try_from(character).ok().map(id_of_byte),
            _ => None,
        }
    }
}

fn byte_of(id: u32) -> Option<u8> {
    id.checked_sub(OFFSET)
        .and_then(|byte| u8::try_from(byte).ok())
}

fn id_of_byte(byte: u8) -> u32 {
    u32::from(byte) + OFFSET
}

impl ByteTokenizer {
    /// Builds the tokenizer as the class's constructor does with the config's arguments.
    pub(crate) fn new(config: &TokenizerConfig) -> Result<Self> {
        let tokens = SpecialTokens::new(defaults(config)?, config, &ByteVocab)?;
        let id_of = |token: &str| tokens.added.id_of(token);
        let role_id = |name: &str| tokens.role(name).and_then(id_of);
        let Some(eos_id) = role_id("eos_token") else {
            return Err(Error::tokenizer("`eos_token` is null, expected a token"));
        };
        Ok(ByteTokenizer {
            stand_alone: tokens.stand_alone(N_BYTES, |token| id_of(token).unwrap_or(0)),
            special_ids: tokens
                .all()
                .iter()
                .filter_map(|token| id_of(token))
                .collect(),
            split_special_tokens: config.split_special_tokens,
            clean_up: config.clean_up_tokenization_spaces,
            eos_id,
            unk_id: role_id("unk_token"),
            pad_id: role_id("pad_token"),
            tokens,
        })
    }

    pub(crate) fn eos_id(&self) -> u32 {
        self.eos_id
    }

    /// Ids of a text, without the end of sequence.
    pub(crate) fn encode(&self, text: &str) -> Vec<u32> {
        if self.split_special_tokens {
            return text.bytes().map(|byte| self.byte_id(byte)).collect();
        }
        let mut ids = Vec::with_capacity(text.len() + 1);
        for part in self.tokens.added.split(text) {
            match self.tokens.added.id_of(&part) {
                Some(id) => ids.push(id),
                None => ids.extend(part.bytes().map(|byte| self.byte_id(byte))),
            }
        }
        ids
    }

    /// A byte's id, or that of an added token that is written like the byte.
    fn byte_id(&self, byte: u8) -> u32 {
        let mut buffer = [0; 2];
        let token: &str = char::from(byte).encode_utf8(&mut buffer);
        self.tokens.added.id_of(token).unwrap_or(id_of_byte(byte))
    }

    /// Appends the end of sequence unless it is there.
    pub(crate) fn frame(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if ids.last() != Some(&self.eos_id) {
            ids.push(self.eos_id);
        }
        ids
    }

    /// The id of a token, if it is one.
    pub(crate) fn find(&self, token: &str) -> Option<u32> {
        self.tokens
            .added
            .id_of(token)
            .or_else(|| ByteVocab.find_last(token))
    }

    /// The text of a token; a byte is written as the character of its number.
    pub(crate) fn token(&self, id: u32) -> Option<String> {
        match self.tokens.added.get(id) {
            Some(token) => Some(token.content.clone()),
            None => ByteVocab.token(id),
        }
    }

    /// One more than the highest id.
    pub(crate) fn vocab_size(&self) -> usize {
        let added = self.tokens.added.iter().map(|(id, _)| id as usize + 1);
        added
            .chain([(OFFSET + N_BYTES) as usize])
            .max()
            .unwrap_or(0)
    }

    /// Text of a sequence of ids. Bytes that spell no character vanish.
    pub(crate) fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let mut texts: Vec<String> = Vec::new();
        let mut bytes = Vec::new();
        let mut open = false;
        for &id in ids {
            if skip_special_tokens && self.special_ids.contains(&id) {
                continue;
            }
            let added = self
                .tokens
                .added
                .get(id)
                .map(|token| token.content.as_str());
            match (added, byte_of(id)) {
                (Some(token), _) if skip_special_tokens && self.tokens.is_special(token) => {}
                (Some(token), _) if self.stand_alone.contains(token) => {
                    if open {
                        push_text(&mut texts, &mut bytes, false);
                        open = false;
                    }
                    texts.push(token.to_owned());
                }
                (Some(token), _) => {
                    bytes.extend_from_slice(token.as_bytes());
                    open = true;
                }
                (None, Some(byte)) => {
                    bytes.push(byte);
                    open = true;
                }
                (None, None) => {
                    return Err(Error::input(format!(
                        "id {id} is not in the vocabulary of {} ids",
                        self.vocab_size()
                    )));
                }
            }
        }
        if open {
            push_text(&mut texts, &mut bytes, true);
        }
        let text = texts.join(" ");
        Ok(match self.clean_up {
            true => clean_up_spaces(&text),
            false => text,
        })
    }

    /// A few words for people.
    pub(crate) fn describe(&self) -> String {
        format!("ByT5Tokenizer (bytes), {} ids", self.vocab_size())
    }
}

/// Moves the bytes gathered so far to the texts; an empty text counts only at the end.
fn push_text(texts: &mut Vec<String>, bytes: &mut Vec<u8>, at_end: bool) {
    let text: String = bytes.utf8_chunks().map(|chunk| chunk.valid()).collect();
    if at_end || !text.is_empty() {
        texts.push(text);
    }
    bytes.clear();
}

fn defaults(config: &TokenizerConfig) -> Result<ClassDefaults> {
    let extra_ids = config.extra_ids.unwrap_or(DEFAULT_EXTRA_IDS);
    let additional = match &config.additional_special_tokens {
        None => (0..extra_ids)
            .map(|index| TokenSpec::Text(format!("<extra_id_{index}>")))
            .collect(),
        Some(list) => {
            let given: HashSet<&str> = list
                .iter()
                .map(TokenSpec::content)
                .filter(|token| token.contains("extra_id"))
                .collect();
            if extra_ids > 0 && !list.is_empty() && given.len() as u32 != extra_ids {
                return Err(Error::tokenizer(format!(
                    "`extra_ids` is {extra_ids}, but `additional_special_tokens` has {} tokens \
                     with `extra_id`",
                    given.len()
                )));
            }
            list.clone()
        }
    };
    // The constructor lets these strip the white space beside them; published configs
    // name them with flags of their own, which then hold.
    let roles = [
        ("eos_token", "</s>"),
        ("unk_token", "<unk>"),
        ("pad_token", "<pad>"),
    ]
    .map(|(name, default)| config.role_token(name, AddedToken::stripping(default)));
    let [Some(eos), Some(unk), Some(pad)] = roles else {
        return Err(Error::tokenizer(
            "one of `eos_token`, `unk_token` and `pad_token` is null, expected three tokens",
        ));
    };
    Ok(ClassDefaults {
        added: vec![(0, pad.clone()), (1, eos.clone()), (2, unk.clone())],
        roles: [None, Some(eos), Some(unk), None, Some(pad), None, None],
        additional,
    })
}
