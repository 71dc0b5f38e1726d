//! Which tokens are added and which are special, worked out the way
//! `PreTrainedTokenizer.__init__` of transformers 4.57.6 does.

use std::collections::{HashMap, HashSet};

use super::added_tokens::{AddedToken, AddedTokens};
use super::config::{ROLES, Role, TokenSpec, TokenizerConfig};
use crate::{Error, Result};

/// The vocabulary below the added tokens.
pub(crate) trait BaseVocab {
    /// Number of ids.
    fn len(&self) -> u32;
    /// Text of a token below [`BaseVocab::len`].
    fn token(&self, id: u32) -> Option<String>;
    /// Highest id of a token with this text.
    fn find_last(&self, token: &str) -> Option<u32>;
}

/// Added and special tokens of one tokenizer.
#[derive(Clone, Debug)]
pub(crate) struct SpecialTokens {
    pub(crate) added: AddedTokens,
    /// Every special token once, in the reference's order.
    all: Vec<String>,
    all_set: HashSet<String>,
    /// The list `additional_special_tokens`.
    additional: Vec<String>,
    roles: [Option<String>; 7],
}

/// What a class brings along before the config is applied.
pub(crate) struct ClassDefaults {
    /// Default token per role, in the order of [`ROLES`].
    pub(crate) roles: [Option<AddedToken>; 7],
    /// Tokens that the class itself puts into the decoder table.
    pub(crate) added: Vec<(u32, AddedToken)>,
    /// The class's value of `additional_special_tokens`.
    pub(crate) additional: Vec<TokenSpec>,
}

impl SpecialTokens {
    /// Merges a class's tokens with those of the config, and gives ids to tokens that are
    /// in neither the vocabulary nor the decoder table: they are appended.
    pub(crate) fn new(
        defaults: ClassDefaults,
        config: &TokenizerConfig,
        vocab: &impl BaseVocab,
    ) -> Result<Self> {
        let mut decoder = defaults.added;
        decoder.extend(config.added_tokens.iter().cloned());
        let mut added = AddedTokens::new(decoder);
        let mut roles: [Option<TokenSpec>; 7] = Default::default();
        for ((role, default), spec) in roles.iter_mut().zip(defaults.roles).zip(&config.roles) {
            *role = match spec {
                Role::Unset => default.map(TokenSpec::Token),
                Role::None => None,
                Role::Given(TokenSpec::Token(token)) => Some(TokenSpec::Token(token.clone())),
                // A class passes on its own roles with its own flags, others as text.
                Role::Given(TokenSpec::Text(text)) => Some(match default {
                    Some(default) => TokenSpec::Token(AddedToken {
                        content: text.clone(),
                        ..default
                    }),
                    None => TokenSpec::Text(text.clone()),
                }),
            };
        }
        let listed = list_special(&roles, &defaults.additional, &config.extra_special_tokens);
        let mut all_set = HashSet::new();
        let all = listed
            .iter()
            .map(|token| token.content().to_owned())
            .filter(|token| all_set.insert(token.clone()))
            .collect();
        append_new(&mut added, &listed, vocab)?;
        added.build_trie();
        Ok(SpecialTokens {
            added,
            all,
            all_set,
            additional: defaults
                .additional
                .iter()
                .map(|token| token.content().to_owned())
                .collect(),
            roles: roles.map(|role| role.map(|token| token.content().to_owned())),
        })
    }

    /// True if the token is one of the special ones.
    pub(crate) fn is_special(&self, token: &str) -> bool {
        self.all_set.contains(token)
    }

    /// Every special token once.
    pub(crate) fn all(&self) -> &[String] {
        &self.all
    }

    /// The token of a role such as `eos_token`.
    pub(crate) fn role(&self, name: &str) -> Option<&str> {
        let role = ROLES.iter().position(|&role| role == name)?;
        self.roles[role].as_deref()
    }

    /// Tokens around which decoding starts afresh and puts spaces: added ones that are
    /// not special, and additional special ones above the base vocabulary.
    pub(crate) fn stand_alone(
        &self,
        base_len: u32,
        id_of: impl Fn(&str) -> u32,
    ) -> HashSet<String> {
        let plain = self
            .added
            .names()
            .map(|(name, _)| name)
            .filter(|name| !self.is_special(name));
        let additional = self
            .additional
            .iter()
            .map(String::as_str)
            .filter(|token| id_of(token) >= base_len);
        plain.chain(additional).map(str::to_owned).collect()
    }
}

/// Every special token in the reference's order. A text that came up before is left out,
/// but one list may have it twice, with and without flags.
pub(crate) fn list_special<'t>(
    roles: &'t [Option<TokenSpec>; 7],
    additional: &'t [TokenSpec],
    extra: &'t [TokenSpec],
) -> Vec<&'t TokenSpec> {
    let mut seen: HashSet<&str> = HashSet::new();
    let mut listed = Vec::new();
    let singles = |tokens: &'t [TokenSpec]| tokens.iter().map(std::slice::from_ref);
    let groups = roles
        .iter()
        .flatten()
        .map(std::slice::from_ref)
        .chain([additional])
        .chain(singles(extra));
    for group in groups {
        let new =
            |token: &&TokenSpec| !token.content().is_empty() && !seen.contains(token.content());
        let group: Vec<&TokenSpec> = group.iter().filter(new).collect();
        seen.extend(group.iter().map(|token| token.content()));
        listed.extend(group);
    }
    listed
}

/// Gives each token its id: the one it has, or the next free one.
fn append_new(
    added: &mut AddedTokens,
    tokens: &[&TokenSpec],
    vocab: &impl BaseVocab,
) -> Result<()> {
    // The vocabulary as it was before the first token is appended.
    let before = added.clone();
    let mut next = None;
    let mut appended = HashMap::new();
    for token in tokens {
        let token = match token {
            TokenSpec::Text(text) if added.id_of(text).is_some() => continue,
            TokenSpec::Text(text) => AddedToken::special(text.clone()),
            TokenSpec::Token(token) => AddedToken {
                special: true,
                ..token.clone()
            },
        };
        let known = before.highest_id_of(&token.content).or_else(|| {
            vocab.find_last(&token.content).filter(|&id| {
                before
                    .get(id)
                    .is_none_or(|other| other.content == token.content)
            })
        });
        let id = match known.or_else(|| appended.get(&token.content).copied()) {
            Some(id) => id,
            None => {
                let id = next.unwrap_or_else(|| count_distinct(&before, vocab));
                next = Some(id + 1);
                appended.insert(token.content.clone(), id);
                id
            }
        };
        if id >= 1 << 31 {
            return Err(Error::tokenizer(format!(
                "token `{}` would get id {id}, expected less than 2^31",
                token.content
            )));
        }
        added.set(id, token);
    }
    Ok(())
}

/// Number of different tokens: the id that the next new token gets.
fn count_distinct(added: &AddedTokens, vocab: &impl BaseVocab) -> u32 {
    let mut names: HashSet<String> = (0..vocab.len())
        .filter_map(|id| match added.get(id) {
            Some(token) => Some(token.content.clone()),
            None => vocab.token(id),
        })
        .collect();
    names.extend(added.iter().map(|(_, token)| token.content.clone()));
    names.len() as u32
}
