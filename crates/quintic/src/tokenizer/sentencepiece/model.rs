//! A loaded SentencePiece model: text to ids, pieces to text.

use super::bpe::{Bpe, PieceIds};
use super::check::{byte_of, check_byte_pieces, find_unknown, index_bytes, index_pieces};
use super::normalizer::{Normalizer, SPACE_SYMBOL, char_len};
use super::proto::{ModelProto, ModelType, Piece, PieceKind};
use super::trie::PieceTrie;
use super::unigram::Unigram;
use crate::{Error, Result};

#[derive(Clone, Debug)]
enum Algorithm {
    Unigram(Unigram),
    Bpe(Bpe),
}

/// A SentencePiece model that can be used from many threads at once.
#[derive(Clone, Debug)]
pub(crate) struct SentencePiece {
    pieces: Vec<Piece>,
    /// Normal, user-defined and unused pieces.
    normal: PieceIds,
    /// Control, byte and unknown pieces; they win over normal ones of the same text.
    reserved: PieceIds,
    unk_id: u32,
    unk_surface: String,
    eos_piece: String,
    pad_piece: String,
    /// Ids of the 256 byte pieces if unknown characters are spelled in bytes.
    byte_ids: Option<Box<[u32; 256]>>,
    normalizer: Normalizer,
    denormalizer: Option<Normalizer>,
    algorithm: Algorithm,
}

impl SentencePiece {
    /// Reads a serialized model.
    ///
    /// # Errors
    ///
    /// Everything that SentencePiece 0.2.3 refuses, damaged files of any kind, and model
    /// types other than unigram and BPE.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        SentencePiece::from_model(ModelProto::parse(bytes)?)
    }

    /// The model of these parts.
    ///
    /// # Errors
    ///
    /// As [`SentencePiece::from_bytes`].
    pub(crate) fn from_model(proto: ModelProto) -> Result<Self> {
        let (normal, reserved) = index_pieces(&proto.pieces)?;
        let unk_id = find_unknown(&proto.pieces)?;
        let byte_ids = match proto.trainer.byte_fallback {
            true => Some(index_bytes(&proto.pieces, &reserved)?),
            false => None,
        };
        check_byte_pieces(&proto.pieces, proto.trainer.byte_fallback)?;
        if proto.trainer.model_type == ModelType::Bpe {
            // Unigram models may have a control piece and a normal piece of one text.
            if let Some(text) = reserved.keys().find(|&text| normal.contains_key(text)) {
                return Err(Error::tokenizer(format!(
                    "pieces {} and {} have the same text `{text}`",
                    reserved[text], normal[text]
                )));
            }
        }
        let algorithm = match proto.trainer.model_type {
            ModelType::Unigram if normal.is_empty() => {
                return Err(Error::tokenizer(
                    "the model has no normal pieces, expected at least one",
                ));
            }
            ModelType::Unigram => Algorithm::Unigram(Unigram::new(&proto.pieces, unk_id)),
            ModelType::Bpe => Algorithm::Bpe(Bpe::new(&proto.pieces)),
            other => {
                return Err(Error::unsupported(format!(
                    "`model_type` is {other:?}, expected Unigram or Bpe"
                )));
            }
        };
        let user_defined: Vec<_> = proto
            .pieces
            .iter()
            .filter(|piece| piece.kind == PieceKind::UserDefined)
            .map(|piece| (piece.text.as_str(), 0))
            .collect();
        let user_defined = (!user_defined.is_empty()).then(|| PieceTrie::new(user_defined));
        let normalizer = Normalizer::new(
            &proto.normalizer,
            user_defined,
            proto.trainer.treat_whitespace_as_suffix,
        )
        .map_err(|error| error.at("normalizer_spec"))?;
        let denormalizer = proto
            .denormalizer
            .filter(|spec| !spec.precompiled_charsmap.is_empty())
            .map(|spec| Normalizer::new(&spec, None, false))
            .transpose()
            .map_err(|error| error.at("denormalizer_spec"))?;
        Ok(SentencePiece {
            pieces: proto.pieces,
            normal,
            reserved,
            unk_id,
            unk_surface: proto.trainer.unk_surface,
            eos_piece: proto.trainer.eos_piece,
            pad_piece: proto.trainer.pad_piece,
            byte_ids,
            normalizer,
            denormalizer,
            algorithm,
        })
    }

    /// Switches the space in front of the text off: what Hugging Face's tokenizers do to
    /// the model unless they are asked for their legacy behaviour.
    pub(crate) fn without_dummy_prefix(mut self) -> Self {
        self.normalizer.add_dummy_prefix = false;
        self
    }

    /// Number of pieces.
    pub(crate) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// The text of a piece.
    pub(crate) fn piece(&self, id: u32) -> Option<&str> {
        self.pieces
            .get(id as usize)
            .map(|piece| piece.text.as_str())
    }

    /// The id of a piece; the id of the unknown piece for any other text.
    pub(crate) fn id_of(&self, piece: &str) -> u32 {
        self.find(piece).unwrap_or(self.unk_id)
    }

    /// The id of a piece, if there is such a piece.
    pub(crate) fn find(&self, piece: &str) -> Option<u32> {
        let id = self.reserved.get(piece).or_else(|| self.normal.get(piece));
        id.copied()
    }

    /// The highest id of a piece with this text; a control piece and a normal piece may
    /// share one.
    pub(crate) fn find_last(&self, piece: &str) -> Option<u32> {
        self.reserved
            .get(piece)
            .max(self.normal.get(piece))
            .copied()
    }

    /// The id of unknown characters.
    pub(crate) fn unk_id(&self) -> u32 {
        self.unk_id
    }

    /// Id of the end-of-sequence piece, if the model has it as a control piece.
    pub(crate) fn eos_id(&self) -> Option<u32> {
        self.control_id(&self.eos_piece)
    }

    /// Id of the padding piece, if the model has it as a control piece.
    pub(crate) fn pad_id(&self) -> Option<u32> {
        self.control_id(&self.pad_piece)
    }

    fn control_id(&self, piece: &str) -> Option<u32> {
        self.reserved
            .get(piece)
            .copied()
            .filter(|&id| self.kind(id) == PieceKind::Control)
    }

    /// A few words for people: type, number of pieces, byte fallback, charsmap.
    pub(crate) fn describe(&self) -> String {
        let kind = match self.algorithm {
            Algorithm::Unigram(_) => "unigram",
            Algorithm::Bpe(_) => "BPE",
        };
        let bytes = match self.byte_ids {
            Some(_) => ", byte fallback",
            None => "",
        };
        let rules = match self.normalizer.has_charsmap() {
            true => ", charsmap",
            false => "",
        };
        format!("{kind}, {} pieces{bytes}{rules}", self.pieces.len())
    }

    /// Ids of a text, nothing added.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.encode_with(text, |piece| {
            ids.push(match piece {
                EncodedPiece::Known(id) => id,
                EncodedPiece::Unknown(_) => self.unk_id,
            });
        })?;
        Ok(ids)
    }

    /// Calls `emit` with each piece of `text`, in order. Neighbouring unknown characters
    /// come as one piece.
    ///
    /// # Errors
    ///
    /// A text of 4 GiB or more.
    pub(crate) fn encode_with(
        &self,
        text: &str,
        mut emit: impl FnMut(EncodedPiece<'_>),
    ) -> Result<()> {
        let normalized = self.normalizer.normalize(text);
        if u32::try_from(normalized.len()).is_err() {
            return Err(Error::input(format!(
                "the text has {} bytes, expected less than 4 GiB",
                normalized.len()
            )));
        }
        // Start and end of the run of unknown characters that is still open.
        let mut open: Option<(usize, usize)> = None;
        let mut end = 0;
        let mut next = |piece: &str, id: u32| {
            let start = end;
            end += piece.len();
            match (id == self.unk_id, &self.byte_ids) {
                (true, None) => open = Some((open.map_or(start, |(start, _)| start), end)),
                (true, Some(byte_ids)) => piece
                    .bytes()
                    .for_each(|byte| emit(EncodedPiece::Known(byte_ids[usize::from(byte)]))),
                (false, _) => {
                    if let Some((start, end)) = open.take() {
                        emit(EncodedPiece::Unknown(&normalized[start..end]));
                    }
                    emit(EncodedPiece::Known(id));
                }
            }
        };
        match &self.algorithm {
            Algorithm::Unigram(unigram) => unigram.cut(&normalized, next),
            Algorithm::Bpe(bpe) => bpe.cut(&normalized, &self.normal, |piece, id| {
                next(piece, id.unwrap_or(self.unk_id))
            }),
        }
        if let Some((start, end)) = open {
            emit(EncodedPiece::Unknown(&normalized[start..end]));
        }
        Ok(())
    }

    /// Puts pieces together to text: U+2581 becomes a space, byte pieces become
    /// characters, control pieces vanish, the unknown piece becomes the model's
    /// `unk_surface`. A text that is no piece stays as it is.
    pub(crate) fn decode(&self, pieces: &[&str]) -> String {
        self.join(pieces.iter().map(|&piece| (self.id_of(piece), piece)))
    }

    /// As [`SentencePiece::decode`], for ids. It differs where two pieces share a text.
    pub(crate) fn decode_ids(&self, ids: &[u32]) -> Result<String> {
        for &id in ids {
            if self.piece(id).is_none() {
                return Err(Error::input(format!(
                    "id {id} is not in the vocabulary of {} ids",
                    self.len()
                )));
            }
        }
        Ok(self.join(ids.iter().filter_map(|&id| Some((id, self.piece(id)?)))))
    }

    fn join<'p>(&self, pieces: impl Iterator<Item = (u32, &'p str)>) -> String {
        let mut text = String::new();
        let mut bytes = Vec::new();
        // True until the first text is there: a space in front of it is the dummy prefix.
        let mut at_start = true;
        let mut took_space = false;
        for (id, piece) in pieces {
            if self.kind(id) == PieceKind::Byte {
                bytes.extend(byte_of(piece));
                continue;
            }
            flush_bytes(&mut bytes, &mut text);
            if took_space || !text.is_empty() {
                at_start = false;
            }
            took_space = self.push_piece(piece, id, at_start, &mut text);
        }
        flush_bytes(&mut bytes, &mut text);
        match &self.denormalizer {
            Some(denormalizer) => denormalizer.normalize(&text),
            None => text,
        }
    }

    /// Appends one piece; true if a leading space was taken for the dummy prefix.
    fn push_piece(&self, piece: &str, id: u32, at_start: bool, text: &mut String) -> bool {
        match self.kind(id) {
            PieceKind::Control => return false,
            PieceKind::Unknown if self.pieces[id as usize].text == piece => {
                text.push_str(&self.unk_surface);
                return false;
            }
            PieceKind::Unknown => {
                text.push_str(piece);
                return false;
            }
            _ => {}
        }
        let strips = self.normalizer.add_dummy_prefix || self.normalizer.remove_extra_whitespaces;
        let stripped = match at_start && strips {
            true => piece.strip_prefix(SPACE_SYMBOL),
            false => None,
        };
        text.push_str(&stripped.unwrap_or(piece).replace(SPACE_SYMBOL, " "));
        // A model without extra spaces has none at its start either: go on stripping.
        stripped.is_some() && !self.normalizer.remove_extra_whitespaces
    }

    fn kind(&self, id: u32) -> PieceKind {
        self.pieces
            .get(id as usize)
            .map_or(PieceKind::Unknown, |piece| piece.kind)
    }
}

/// What [`SentencePiece::encode_with`] hands out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum EncodedPiece<'t> {
    /// A piece of the vocabulary.
    Known(u32),
    /// Characters that no piece covers, as they are after normalization.
    Unknown(&'t str),
}

/// Appends the characters that `bytes` spell; each byte that is part of none becomes
/// U+FFFD.
fn flush_bytes(bytes: &mut Vec<u8>, text: &mut String) {
    let mut rest = bytes.as_slice();
    while let Some(&first) = rest.first() {
        match rest.get(..char_len(first)).map(std::str::from_utf8) {
            Some(Ok(character)) => {
                text.push_str(character);
                rest = &rest[character.len()..];
            }
            _ => {
                text.push('\u{fffd}');
                rest = &rest[1..];
            }
        }
    }
    bytes.clear();
}
