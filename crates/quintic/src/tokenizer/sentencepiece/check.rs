//! Checks the pieces of a model and indexes them.

use std::collections::HashMap;

use super::bpe::PieceIds;
use super::proto::{Piece, PieceKind};
use crate::{Error, Result};

/// SentencePiece refuses longer pieces, and so do we: it bounds the work per character.
const MAX_PIECE_BYTES: usize = 8000;

/// Maps texts to ids, normal pieces and reserved ones apart, and checks every piece.
pub(super) fn index_pieces(pieces: &[Piece]) -> Result<(PieceIds, PieceIds)> {
    if pieces.is_empty() {
        return Err(Error::tokenizer("the model has 0 pieces, expected some"));
    }
    if u32::try_from(pieces.len()).is_err() {
        return Err(Error::tokenizer("the model has more than 2^32 pieces"));
    }
    let mut normal = HashMap::with_capacity(pieces.len());
    let mut reserved = HashMap::new();
    for (id, piece) in (0u32..).zip(pieces) {
        let wrong = |what: String| Err(Error::tokenizer(what).at(format_args!("piece {id}")));
        if piece.text.is_empty() {
            return wrong("its text is empty".to_owned());
        }
        if piece.text.contains('\0') {
            return wrong("its text has a zero byte".to_owned());
        }
        if piece.text.len() >= MAX_PIECE_BYTES {
            return wrong(format!(
                "its text has {} bytes, expected less than {MAX_PIECE_BYTES}",
                piece.text.len()
            ));
        }
        if !piece.score.is_finite() {
            return wrong(format!("its score is {}, expected a number", piece.score));
        }
        let ids = match piece.kind {
            PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused => &mut normal,
            PieceKind::Unknown | PieceKind::Control | PieceKind::Byte => &mut reserved,
        };
        if let Some(first) = ids.insert(piece.text.as_str().into(), id) {
            return wrong(format!(
                "its text `{}` is piece {first} already",
                piece.text
            ));
        }
    }
    Ok((normal, reserved))
}

/// The id of the one piece of type unknown.
pub(super) fn find_unknown(pieces: &[Piece]) -> Result<u32> {
    let mut unknown = (0u32..)
        .zip(pieces)
        .filter(|(_, piece)| piece.kind == PieceKind::Unknown)
        .map(|(id, _)| id);
    match (unknown.next(), unknown.next()) {
        (Some(id), None) => Ok(id),
        (None, _) => Err(Error::tokenizer(
            "the model has no piece of type unknown, expected one",
        )),
        (Some(first), Some(second)) => Err(Error::tokenizer(format!(
            "pieces {first} and {second} are both of type unknown, expected one"
        ))),
    }
}

/// Byte pieces need `byte_fallback` and a name such as `<0x0A>`.
pub(super) fn check_byte_pieces(pieces: &[Piece], byte_fallback: bool) -> Result<()> {
    for (id, piece) in pieces.iter().enumerate() {
        if piece.kind != PieceKind::Byte {
            continue;
        }
        let wrong = |what: &str| {
            Err(
                Error::tokenizer(format!("byte piece `{}` {what}", piece.text))
                    .at(format_args!("piece {id}")),
            )
        };
        if !byte_fallback {
            return wrong("is there although `byte_fallback` is false");
        }
        if byte_of(&piece.text).is_none() {
            return wrong("does not have the form `<0x00>`");
        }
    }
    Ok(())
}

/// The ids of all 256 byte pieces.
pub(super) fn index_bytes(pieces: &[Piece], reserved: &PieceIds) -> Result<Box<[u32; 256]>> {
    let mut ids = Box::new([0; 256]);
    for (byte, id) in ids.iter_mut().enumerate() {
        let piece = format!("<0x{byte:02X}>");
        let found = reserved
            .get(piece.as_str())
            .filter(|&&id| pieces[id as usize].kind == PieceKind::Byte);
        *id = *found.ok_or_else(|| {
            Error::tokenizer(format!(
                "`byte_fallback` is true, but byte piece `{piece}` is missing"
            ))
        })?;
    }
    Ok(ids)
}

/// The byte that a piece such as `<0x0A>` stands for.
pub(super) fn byte_of(piece: &str) -> Option<u8> {
    let hex = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let well_formed = hex.len() == 2
        && hex
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte));
    well_formed.then(|| u8::from_str_radix(hex, 16).ok())?
}
