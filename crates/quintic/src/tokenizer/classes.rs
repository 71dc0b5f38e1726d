//! What the reference's tokenizer classes bring along: default tokens and sentinels.

use super::added_tokens::AddedToken;
use super::config::{TokenSpec, TokenizerConfig};
use super::special::ClassDefaults;
use crate::{Error, Result};

/// Sentinels of `T5Tokenizer` when the config does not say how many.
const DEFAULT_EXTRA_IDS: u32 = 100;

/// Which of the reference's classes is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlowClass {
    /// `T5Tokenizer`, also for mT5, UMT5, Long-T5, MADLAD.
    T5,
    /// `LlamaTokenizer`, used by Pile-T5.
    Llama,
}

/// Default role tokens of `T5Tokenizer`, slow and fast.
pub(crate) const T5_ROLES: [Option<&str>; 7] = [
    None,
    Some("</s>"),
    Some("<unk>"),
    None,
    Some("<pad>"),
    None,
    None,
];

/// The list `additional_special_tokens` of a T5 class, and how many ids just above the
/// pieces the slow class gives to sentinels by itself.
pub(crate) fn t5_sentinels(config: &TokenizerConfig) -> Result<(Vec<TokenSpec>, u32)> {
    let extra_ids = config.extra_ids.unwrap_or(DEFAULT_EXTRA_IDS);
    let sentinels = (0..extra_ids).map(|index| TokenSpec::Text(format!("<extra_id_{index}>")));
    let Some(list) = &config.additional_special_tokens else {
        return Ok((sentinels.collect(), extra_ids));
    };
    let given = list
        .iter()
        .filter(|token| token.content().contains("<extra_id_"))
        .count() as u32;
    if given == 0 {
        return Ok((list.iter().cloned().chain(sentinels).collect(), 0));
    }
    if extra_ids > 0 && extra_ids != given {
        return Err(Error::tokenizer(format!(
            "`extra_ids` is {extra_ids}, but `additional_special_tokens` has {given} tokens \
             with `<extra_id_`"
        )));
    }
    Ok((list.clone(), given))
}

pub(crate) fn t5_defaults(n_pieces: usize, config: &TokenizerConfig) -> Result<ClassDefaults> {
    let (additional, n_own) = t5_sentinels(config)?;
    let extra_ids = config.extra_ids.unwrap_or(DEFAULT_EXTRA_IDS);
    let top = n_pieces as i64 - 1 + i64::from(extra_ids);
    let mut added = Vec::new();
    for index in 0..n_own {
        let id = u32::try_from(top - i64::from(index)).map_err(|_| {
            Error::tokenizer(format!("{n_own} sentinels do not fit the vocabulary"))
        })?;
        added.push((id, AddedToken::stripping(format!("<extra_id_{index}>"))));
    }
    Ok(ClassDefaults {
        roles: T5_ROLES.map(|token| token.map(AddedToken::special)),
        added,
        additional,
    })
}

pub(crate) fn llama_defaults(config: &TokenizerConfig) -> ClassDefaults {
    let role = |token| Some(AddedToken::special(token));
    ClassDefaults {
        roles: [
            role("<s>"),
            role("</s>"),
            role("<unk>"),
            None,
            None,
            None,
            None,
        ],
        added: Vec::new(),
        additional: config.additional_special_tokens.clone().unwrap_or_default(),
    }
}

/// Takes out spaces that stand before punctuation and English contractions.
pub(crate) fn clean_up_spaces(text: &str) -> String {
    const RULES: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    let mut text = text.to_owned();
    for (from, to) in RULES {
        text = text.replace(from, to);
    }
    text
}
