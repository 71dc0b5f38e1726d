//! Reading a header with bounds.

use crate::{Error, Result};

/// Longest name of a tensor or a key.
const MAX_TEXT: u64 = 1 << 16;

/// What is left of the bytes of a file.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    /// Bytes that have been read.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    /// The next `n` bytes, which are `what`.
    pub(super) fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8]> {
        let rest = self.rest();
        match usize::try_from(n).ok().and_then(|n| rest.get(..n)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => Err(Error::checkpoint(format!(
                "{what} takes {n} bytes from byte {} on, the file ends after {} of them",
                self.at,
                rest.len()
            ))
            .hint("was the download or copy cut short?")),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A text of any length: its length, then its bytes.
    pub(super) fn long_text(&mut self, what: &str) -> Result<&'a str> {
        let n = self.u64(what)?;
        let at = self.at;
        let bytes = self.take(n, what)?;
        std::str::from_utf8(bytes).map_err(|error| {
            Error::checkpoint(format!("{what} at byte {at} is not UTF-8")).source_error(error)
        })
    }

    /// A text that is a name.
    pub(super) fn text(&mut self, what: &str) -> Result<&'a str> {
        let text = self.long_text(what)?;
        match text.len() as u64 {
            n if n > MAX_TEXT => Err(Error::checkpoint(format!(
                "{what} has {n} bytes, expected at most {MAX_TEXT}"
            ))),
            _ => Ok(text),
        }
    }
}
