//! Reads the protobuf form of a SentencePiece model.
//!
//! Only the fields that change token ids or decoded text are kept. Every length is
//! checked against the bytes that are there before anything is allocated, so the memory
//! used is bounded by the size of the file.

use crate::{Error, Result};

/// What a piece stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PieceKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl PieceKind {
    /// The kind of the format's number, which GGUF files have, too.
    pub(crate) fn of_number(number: u64) -> Result<Self> {
        Ok(match number {
            1 => PieceKind::Normal,
            2 => PieceKind::Unknown,
            3 => PieceKind::Control,
            4 => PieceKind::UserDefined,
            5 => PieceKind::Unused,
            6 => PieceKind::Byte,
            other => {
                return Err(Error::tokenizer(format!(
                    "piece type is {other}, expected 1 to 6"
                )));
            }
        })
    }
}

/// One entry of the vocabulary; its index is its id.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) score: f32,
    pub(crate) kind: PieceKind,
}

/// How the model cuts normalized text into pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ModelType {
    Unigram,
    Bpe,
    Word,
    Char,
}

/// The parts of the trainer's settings that matter when encoding or decoding.
#[derive(Clone, Debug)]
pub(crate) struct TrainerSpec {
    pub(crate) model_type: ModelType,
    pub(crate) byte_fallback: bool,
    pub(crate) treat_whitespace_as_suffix: bool,
    pub(crate) unk_surface: String,
    pub(crate) eos_piece: String,
    pub(crate) pad_piece: String,
}

/// How text is rewritten before it is cut (or after it is put together again).
#[derive(Clone, Debug)]
pub(crate) struct NormalizerSpec {
    pub(crate) precompiled_charsmap: Vec<u8>,
    pub(crate) add_dummy_prefix: bool,
    pub(crate) remove_extra_whitespaces: bool,
    pub(crate) escape_whitespaces: bool,
}

/// A whole model file.
#[derive(Clone, Debug)]
pub(crate) struct ModelProto {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) trainer: TrainerSpec,
    pub(crate) normalizer: NormalizerSpec,
    pub(crate) denormalizer: Option<NormalizerSpec>,
}

impl Default for TrainerSpec {
    fn default() -> Self {
        TrainerSpec {
            model_type: ModelType::Unigram,
            byte_fallback: false,
            treat_whitespace_as_suffix: false,
            unk_surface: " \u{2047} ".to_owned(),
            eos_piece: "</s>".to_owned(),
            pad_piece: "<pad>".to_owned(),
        }
    }
}

impl Default for NormalizerSpec {
    fn default() -> Self {
        NormalizerSpec {
            precompiled_charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        }
    }
}

impl ModelProto {
    /// Parses a serialized `ModelProto`.
    ///
    /// # Errors
    ///
    /// Cut off or overlong fields, fields of the wrong wire type, text that is not UTF-8,
    /// and piece or model types outside the format's lists.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let mut model = ModelProto {
            pieces: Vec::new(),
            trainer: TrainerSpec::default(),
            normalizer: NormalizerSpec::default(),
            denormalizer: None,
        };
        let mut reader = Reader::new(bytes);
        while let Some(field) = reader.next_field()? {
            match field.number {
                1 => {
                    let index = model.pieces.len();
                    let piece = parse_piece(field.bytes()?)
                        .map_err(|error| error.at(format_args!("piece {index}")))?;
                    model.pieces.push(piece);
                }
                2 => parse_trainer(field.bytes()?, &mut model.trainer)
                    .map_err(|error| error.at("trainer_spec"))?,
                3 => parse_normalizer(field.bytes()?, &mut model.normalizer)
                    .map_err(|error| error.at("normalizer_spec"))?,
                5 => parse_normalizer(
                    field.bytes()?,
                    model
                        .denormalizer
                        .get_or_insert_with(NormalizerSpec::default),
                )
                .map_err(|error| error.at("denormalizer_spec"))?,
                _ => {}
            }
        }
        Ok(model)
    }
}

fn parse_piece(bytes: &[u8]) -> Result<Piece> {
    let mut piece = Piece {
        text: String::new(),
        score: 0.0,
        kind: PieceKind::Normal,
    };
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.next_field()? {
        match field.number {
            1 => piece.text = field.string()?,
            // `-0.0 + 0.0` is `0.0`: afterwards equal scores also have equal bits.
            2 => piece.score = field.float()? + 0.0,
            3 => piece.kind = PieceKind::of_number(field.varint()?)?,
            _ => {}
        }
    }
    Ok(piece)
}

fn parse_trainer(bytes: &[u8], spec: &mut TrainerSpec) -> Result<()> {
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.next_field()? {
        match field.number {
            3 => {
                spec.model_type = match field.varint()? {
                    1 => ModelType::Unigram,
                    2 => ModelType::Bpe,
                    3 => ModelType::Word,
                    4 => ModelType::Char,
                    other => {
                        return Err(Error::tokenizer(format!(
                            "`model_type` is {other}, expected 1 (unigram) or 2 (BPE)"
                        )));
                    }
                }
            }
            24 => spec.treat_whitespace_as_suffix = field.varint()? != 0,
            35 => spec.byte_fallback = field.varint()? != 0,
            44 => spec.unk_surface = field.string()?,
            47 => spec.eos_piece = field.string()?,
            48 => spec.pad_piece = field.string()?,
            _ => {}
        }
    }
    Ok(())
}

fn parse_normalizer(bytes: &[u8], spec: &mut NormalizerSpec) -> Result<()> {
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.next_field()? {
        match field.number {
            2 => spec.precompiled_charsmap = field.bytes()?.to_vec(),
            3 => spec.add_dummy_prefix = field.varint()? != 0,
            4 => spec.remove_extra_whitespaces = field.varint()? != 0,
            5 => spec.escape_whitespaces = field.varint()? != 0,
            _ => {}
        }
    }
    Ok(())
}

/// One field: its number and its still raw value.
struct Field<'a> {
    number: u64,
    value: Value<'a>,
}

enum Value<'a> {
    Varint(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
}

impl<'a> Field<'a> {
    fn bytes(&self) -> Result<&'a [u8]> {
        match self.value {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(self.wrong_type("bytes")),
        }
    }

    fn string(&self) -> Result<String> {
        let bytes = self.bytes()?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(cause) => Err(Error::tokenizer(format!(
                "field {} is not UTF-8 from its byte {} on",
                self.number,
                cause.valid_up_to()
            ))),
        }
    }

    fn varint(&self) -> Result<u64> {
        match self.value {
            Value::Varint(value) => Ok(value),
            _ => Err(self.wrong_type("a varint")),
        }
    }

    fn float(&self) -> Result<f32> {
        match self.value {
            Value::Fixed32(bytes) => Ok(f32::from_le_bytes(bytes)),
            _ => Err(self.wrong_type("a 32-bit float")),
        }
    }

    fn wrong_type(&self, expected: &str) -> Error {
        let found = match self.value {
            Value::Varint(_) => "a varint",
            Value::Fixed64 => "8 bytes",
            Value::Bytes(_) => "bytes",
            Value::Fixed32(_) => "4 bytes",
        };
        Error::tokenizer(format!(
            "field {} holds {found}, expected {expected}",
            self.number
        ))
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    len: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Reader {
            rest: bytes,
            len: bytes.len(),
        }
    }

    fn next_field(&mut self) -> Result<Option<Field<'a>>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = tag >> 3;
        if number == 0 {
            return Err(self.broken("field number is 0"));
        }
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.take(len)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Value::Fixed32([bytes[0], bytes[1], bytes[2], bytes[3]])
            }
            other => return Err(self.broken(&format!("field {number} has wire type {other}"))),
        };
        Ok(Some(Field { number, value }))
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for index in 0..10 {
            let Some((&byte, rest)) = self.rest.split_first() else {
                return Err(self.broken("a varint is cut off"));
            };
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.broken("a varint is longer than 10 bytes"))
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8]> {
        let split = usize::try_from(len)
            .ok()
            .and_then(|len| self.rest.split_at_checked(len));
        match split {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(self.broken(&format!(
                "a field has {len} bytes, but {} are left",
                self.rest.len()
            ))),
        }
    }

    fn broken(&self, what: &str) -> Error {
        let at = self.len - self.rest.len();
        Error::tokenizer(format!("not a SentencePiece model: {what} (at byte {at})"))
    }
}
