//! Text to token ids and back.
//!
//! Four kinds of files are read: SentencePiece models with Hugging Face's rules for added
//! tokens on top ("slow"), `tokenizer.json` ("fast"), ByT5's bytes, which need no file,
//! and SentencePiece models on their own. `docs/tokenizers.md` says which published model
//! means which of them, and where they differ.

mod added_tokens;
mod bytes;
mod classes;
mod config;
mod fast;
mod fast_check;
mod fast_model;
pub(crate) mod sentencepiece;
mod slow;
mod special;
mod values;

use std::path::Path;

use self::added_tokens::AddedToken;
use self::bytes::ByteTokenizer;
use self::classes::SlowClass;
use self::config::{ROLES, Role, TOKENIZER_JSON, TokenSpec, TokenizerConfig};
use self::fast::{FastClass, FastTokenizer};
pub(crate) use self::fast_model::unigram_model;
use self::sentencepiece::SentencePiece;
pub(crate) use self::sentencepiece::{
    ModelProto, ModelType, NormalizerSpec, Piece, PieceKind, TrainerSpec,
};
use self::slow::SlowTokenizer;
use crate::limits::{MAX_TOKENIZER_BYTES, read_file};
use crate::{Error, ErrorKind, Result};

/// Files that can hold a SentencePiece model, in the order in which they are looked for.
const SPIECE_FILES: [&str; 2] = ["spiece.model", "tokenizer.model"];

/// Which of the tokenizers in a folder to use.
///
/// They do not always agree: see `docs/tokenizers.md`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenizerChoice {
    /// `tokenizer.json` if it is there, else a SentencePiece model, else bytes if the
    /// config files name ByT5. Transformers' `AutoTokenizer` goes by the same order.
    #[default]
    Auto,
    /// `tokenizer.json`.
    Fast,
    /// The SentencePiece model (`spiece.model` or `tokenizer.model`) or ByT5's bytes.
    Slow,
}

/// How a SentencePiece model without flag files is used.
///
/// The default is that of the bare constructor `T5Tokenizer(vocab_file)`: the legacy
/// behaviour, 100 sentinels above the pieces, which take the white space beside them with
/// them, and an end of sequence after each text.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpieceOptions {
    /// Puts a space in front of text that follows an added token, as transformers did at
    /// first. Published T5 configs keep it; Pile-T5 does not.
    pub legacy: bool,
    /// Number of sentinels `<extra_id_0>` … above the pieces: 100 for T5, 300 for UMT5,
    /// 0 for mT5, which has them among its pieces.
    pub extra_ids: u32,
}

impl Default for SpieceOptions {
    fn default() -> Self {
        SpieceOptions {
            legacy: true,
            extra_ids: 100,
        }
    }
}

/// How a BPE model becomes Pile-T5's tokenizer: texts of its tokens, each a piece or absent.
#[derive(Clone, Debug, Default)]
pub(crate) struct LlamaOptions {
    pub(crate) bos: Option<String>,
    pub(crate) eos: Option<String>,
    pub(crate) unk: Option<String>,
    pub(crate) pad: Option<String>,
    /// Whether a text begins with `bos`.
    pub(crate) add_bos: bool,
    /// Sentinels above the pieces, the first with the highest id.
    pub(crate) extra_ids: u32,
}

/// A loaded tokenizer. It does not change, and can be used from many threads at once.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    kind: Kind,
    model_max_length: Option<u64>,
    truncate_left: bool,
}

#[derive(Clone, Debug)]
enum Kind {
    Slow(Box<SlowTokenizer>),
    Fast(Box<FastTokenizer>),
    Bytes(Box<ByteTokenizer>),
    /// SentencePiece with nothing on top: no added tokens, no end of sequence.
    Raw(Box<SentencePiece>),
}

impl Tokenizer {
    /// Loads the tokenizer of a model folder.
    ///
    /// Read are `tokenizer.json`, `spiece.model`, `tokenizer.model`,
    /// `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` and, for
    /// the class, `config.json`, and they are merged as transformers 4.57.6 does. Without
    /// `tokenizer_config.json`, classes have the arguments of their bare constructors
    /// (see [`SpieceOptions`]); a SentencePiece model without any class is taken for
    /// `T5Tokenizer`.
    ///
    /// # Errors
    ///
    /// A folder without the chosen files, damaged files, and flags that change ids in a
    /// way that is not done here.
    pub fn from_dir(dir: &Path, choice: TokenizerChoice) -> Result<Self> {
        let config = TokenizerConfig::from_dir(dir)?;
        let class = config
            .class
            .clone()
            .unwrap_or_else(|| "T5Tokenizer".to_owned());
        let is_bytes = class == "ByT5Tokenizer";
        let fast = dir.join(TOKENIZER_JSON);
        let slow = SPIECE_FILES
            .iter()
            .map(|name| dir.join(name))
            .find(|path| path.is_file());
        if choice == TokenizerChoice::Fast || (choice == TokenizerChoice::Auto && fast.is_file()) {
            return Tokenizer::fast_from(&fast, &class, &config);
        }
        if is_bytes {
            let bytes = ByteTokenizer::new(&config).map_err(|error| error.at(dir.display()))?;
            return Ok(Tokenizer::new(Kind::Bytes(Box::new(bytes)), &config));
        }
        let Some(path) = slow else {
            return Err(Error::new(
                crate::ErrorKind::NotFound,
                match choice {
                    TokenizerChoice::Slow => {
                        "no `spiece.model` or `tokenizer.model` is there, and no config names ByT5"
                    }
                    _ => {
                        "no `tokenizer.json`, `spiece.model` or `tokenizer.model` is there, and \
                         no config names ByT5"
                    }
                },
            )
            .at(dir.display()));
        };
        let class = match class.strip_suffix("Fast").unwrap_or(&class) {
            "T5Tokenizer" | "MT5Tokenizer" => SlowClass::T5,
            "LlamaTokenizer" => SlowClass::Llama,
            other => {
                return Err(Error::unsupported(format!(
                    "tokenizer class `{other}` is not known, expected `T5Tokenizer`, \
                     `LlamaTokenizer` or `ByT5Tokenizer`"
                ))
                .at(dir.display()));
            }
        };
        let bytes = read(&path)?;
        Tokenizer::slow_from(&bytes, class, &config).map_err(|error| error.at(path.display()))
    }

    /// Loads one file: a `.json` file as `tokenizer.json` just as it is, anything else as
    /// a SentencePiece model with the default [`SpieceOptions`]. Flag files beside it are
    /// not read; [`Tokenizer::from_dir`] does that.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or is damaged.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = read(path)?;
        let is_json = path
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        match is_json {
            true => Tokenizer::from_json_bytes(&bytes),
            false => Tokenizer::from_spiece_bytes(&bytes, &SpieceOptions::default()),
        }
        .map_err(|error| error.at(path.display()))
    }

    /// Loads the content of a `tokenizer.json`, with truncation and padding switched off.
    ///
    /// # Errors
    ///
    /// Damaged content.
    pub fn from_json_bytes(json: &[u8]) -> Result<Self> {
        let fast = FastTokenizer::from_bytes(json)?;
        let config = TokenizerConfig::default();
        Ok(Tokenizer::new(Kind::Fast(Box::new(fast)), &config))
    }

    /// Loads a SentencePiece model, for instance one that is stored inside a checkpoint.
    ///
    /// # Errors
    ///
    /// Damaged content, or a model type other than unigram and BPE.
    pub fn from_spiece_bytes(spiece: &[u8], options: &SpieceOptions) -> Result<Self> {
        Tokenizer::over(SentencePiece::from_bytes(spiece)?, options)
    }

    /// As [`Tokenizer::from_spiece_bytes`], for a model that was taken apart before.
    pub(crate) fn from_model(model: ModelProto, options: &SpieceOptions) -> Result<Self> {
        Tokenizer::over(SentencePiece::from_model(model)?, options)
    }

    /// `LlamaTokenizer` over a BPE model, with Pile-T5's flags: `legacy` false, an end of sequence
    /// behind each text, sentinels above the pieces.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::from_spiece_bytes`], and if there is no end of sequence.
    pub(crate) fn llama_from_model(model: ModelProto, options: LlamaOptions) -> Result<Self> {
        let n_pieces = model.pieces.len() as u32;
        let role = |text: Option<String>| match text {
            Some(text) => Role::Given(TokenSpec::Token(AddedToken::special(text))),
            None => Role::None,
        };
        let sentinel = |n: u32| AddedToken::special(format!("<extra_id_{n}>"));
        let sentinels = (0..options.extra_ids).map(sentinel);
        let mut roles: [Role; 7] = Default::default();
        for (name, text) in [
            ("bos_token", options.bos),
            ("eos_token", options.eos),
            ("unk_token", options.unk),
            ("pad_token", options.pad),
        ] {
            if let Some(place) = ROLES.iter().position(|&role| role == name) {
                roles[place] = role(text);
            }
        }
        let config = TokenizerConfig {
            roles,
            legacy: Some(false),
            add_bos_token: Some(options.add_bos),
            add_eos_token: Some(true),
            additional_special_tokens: Some(sentinels.map(TokenSpec::Token).collect()),
            added_tokens: (0..options.extra_ids)
                .map(|n| (n_pieces + options.extra_ids - 1 - n, sentinel(n)))
                .collect(),
            ..TokenizerConfig::default()
        };
        let model = SentencePiece::from_model(model)?;
        let slow = SlowTokenizer::new(model, SlowClass::Llama, &config)?;
        Ok(Tokenizer::new(Kind::Slow(Box::new(slow)), &config))
    }

    fn over(model: SentencePiece, options: &SpieceOptions) -> Result<Self> {
        let config = TokenizerConfig {
            legacy: Some(options.legacy),
            extra_ids: Some(options.extra_ids),
            ..TokenizerConfig::default()
        };
        let slow = SlowTokenizer::new(model, SlowClass::T5, &config)?;
        Ok(Tokenizer::new(Kind::Slow(Box::new(slow)), &config))
    }

    /// Loads a SentencePiece model with nothing on top: ids are SentencePiece's own, no
    /// added token is looked for in texts, and nothing is appended to them.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::from_spiece_bytes`].
    pub fn raw_spiece(spiece: &[u8]) -> Result<Self> {
        let model = SentencePiece::from_bytes(spiece)?;
        let config = TokenizerConfig::default();
        Ok(Tokenizer::new(Kind::Raw(Box::new(model)), &config))
    }

    /// ByT5's tokenizer as its bare constructor makes it, with `extra_ids` sentinels (125
    /// in published models). Its special tokens take the white space beside them with
    /// them; published configs say otherwise, see [`Tokenizer::from_dir`].
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn bytes(extra_ids: u32) -> Result<Self> {
        let config = TokenizerConfig {
            extra_ids: Some(extra_ids),
            ..TokenizerConfig::default()
        };
        let bytes = ByteTokenizer::new(&config)?;
        Ok(Tokenizer::new(Kind::Bytes(Box::new(bytes)), &config))
    }

    /// Ids of a text. `add_special_tokens` frames it as the model expects, which for T5
    /// means an end of sequence behind it. Slow tokenizers do not double one that the
    /// text ends with; `tokenizer.json` does.
    ///
    /// # Errors
    ///
    /// A text of 4 GiB or more; unknown characters where a `tokenizer.json` has no
    /// unknown token.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let ids = match &self.kind {
            Kind::Slow(slow) => slow.encode(text)?,
            Kind::Fast(fast) => return fast.encode(text, add_special_tokens),
            Kind::Bytes(bytes) => bytes.encode(text),
            Kind::Raw(raw) => raw.encode(text)?,
        };
        Ok(match add_special_tokens {
            true => self.frame(ids),
            false => ids,
        })
    }

    /// Ids of a text, framed, and shortened to at most `max_length` of them.
    ///
    /// As with `truncation=True, max_length=…` in transformers, the text's own ids are
    /// cut off, at its end unless `truncation_side` is `left`, and the end of sequence
    /// stays.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`], and a `max_length` with no room for the framing tokens.
    pub fn encode_truncated(&self, text: &str, max_length: usize) -> Result<Vec<u32>> {
        let n_framing = match &self.kind {
            Kind::Slow(slow) => slow.n_framing(),
            Kind::Fast(fast) => fast.encode("", true)?.len(),
            Kind::Bytes(_) => 1,
            Kind::Raw(_) => 0,
        };
        if max_length < n_framing {
            return Err(Error::input(format!(
                "`max_length` is {max_length}, expected at least {n_framing}, the number of \
                 tokens added to each text"
            )));
        }
        let mut ids = match &self.kind {
            Kind::Fast(fast) => return fast.encode_truncated(text, max_length),
            _ => self.encode(text, false)?,
        };
        let room = max_length - n_framing;
        if ids.len() > room {
            match self.truncate_left {
                true => drop(ids.drain(..ids.len() - room)),
                false => ids.truncate(room),
            }
        }
        Ok(self.frame(ids))
    }

    /// Text of a sequence of ids, as transformers' `decode` gives it.
    ///
    /// # Errors
    ///
    /// An id outside the vocabulary, unless the tokenizer is a `tokenizer.json`, which
    /// leaves such ids out.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        match &self.kind {
            Kind::Slow(slow) => slow.decode(ids, skip_special_tokens),
            Kind::Fast(fast) => fast.decode(ids, skip_special_tokens),
            Kind::Bytes(bytes) => bytes.decode(ids, skip_special_tokens),
            Kind::Raw(raw) => raw.decode_ids(ids),
        }
    }

    /// The text of a token as the vocabulary has it (with U+2581 for a space).
    pub fn token(&self, id: u32) -> Option<String> {
        match &self.kind {
            Kind::Slow(slow) => slow.token(id).map(str::to_owned),
            Kind::Fast(fast) => fast.token(id),
            Kind::Bytes(bytes) => bytes.token(id),
            Kind::Raw(raw) => raw.piece(id).map(str::to_owned),
        }
    }

    /// The id of a token, if the vocabulary has it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        match &self.kind {
            Kind::Slow(slow) => slow.find(token),
            Kind::Fast(fast) => fast.find(token),
            Kind::Bytes(bytes) => bytes.find(token),
            Kind::Raw(raw) => raw.find(token),
        }
    }

    /// One more than the highest id that can come out. The model's embedding must have at
    /// least as many rows; it often has more.
    pub fn vocab_size(&self) -> usize {
        match &self.kind {
            Kind::Slow(slow) => slow.vocab_size(),
            Kind::Fast(fast) => fast.vocab_size(),
            Kind::Bytes(bytes) => bytes.vocab_size(),
            Kind::Raw(raw) => raw.len(),
        }
    }

    /// Id of the end of sequence, if there is one.
    pub fn eos_id(&self) -> Option<u32> {
        match &self.kind {
            Kind::Slow(slow) => slow.eos_id(),
            Kind::Fast(fast) => fast.eos_id,
            Kind::Bytes(bytes) => Some(bytes.eos_id()),
            Kind::Raw(raw) => raw.eos_id(),
        }
    }

    /// Id of padding, if the tokenizer has such a token. Pile-T5's has none.
    pub fn pad_id(&self) -> Option<u32> {
        match &self.kind {
            Kind::Slow(slow) => slow.pad_id,
            Kind::Fast(fast) => fast.pad_id,
            Kind::Bytes(bytes) => bytes.pad_id,
            Kind::Raw(raw) => raw.pad_id(),
        }
    }

    /// Id of unknown characters, if there is one.
    pub fn unk_id(&self) -> Option<u32> {
        match &self.kind {
            Kind::Slow(slow) => slow.unk_id,
            Kind::Fast(fast) => fast.unk_id,
            Kind::Bytes(bytes) => bytes.unk_id,
            Kind::Raw(raw) => Some(raw.unk_id()),
        }
    }

    /// `model_max_length` of `tokenizer_config.json`, for callers who truncate by it;
    /// nothing here does. `None` if it is absent or means "no limit".
    pub fn model_max_length(&self) -> Option<u64> {
        self.model_max_length
    }

    /// One line for people: kind, pieces, flags.
    pub fn describe(&self) -> String {
        match &self.kind {
            Kind::Slow(slow) => slow.describe(),
            Kind::Fast(fast) => fast.describe(),
            Kind::Bytes(bytes) => bytes.describe(),
            Kind::Raw(raw) => format!("SentencePiece ({})", raw.describe()),
        }
    }

    fn new(kind: Kind, config: &TokenizerConfig) -> Self {
        Tokenizer {
            kind,
            model_max_length: config.model_max_length,
            truncate_left: config.truncate_left,
        }
    }

    fn fast_from(path: &Path, class: &str, config: &TokenizerConfig) -> Result<Self> {
        let class: FastClass = class.parse()?;
        let json = read(path)?;
        let fast = FastTokenizer::from_bytes(&json)
            .and_then(|fast| fast.with_config(class, config))
            .map_err(|error| error.at(path.display()))?;
        Ok(Tokenizer::new(Kind::Fast(Box::new(fast)), config))
    }

    fn slow_from(spiece: &[u8], class: SlowClass, config: &TokenizerConfig) -> Result<Self> {
        let model = SentencePiece::from_bytes(spiece)?;
        let slow = SlowTokenizer::new(model, class, config)?;
        Ok(Tokenizer::new(Kind::Slow(Box::new(slow)), config))
    }

    fn frame(&self, ids: Vec<u32>) -> Vec<u32> {
        match &self.kind {
            Kind::Slow(slow) => slow.frame(ids),
            Kind::Bytes(bytes) => bytes.frame(ids),
            Kind::Fast(_) | Kind::Raw(_) => ids,
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    read_file(path, MAX_TOKENIZER_BYTES, ErrorKind::Tokenizer)
}
