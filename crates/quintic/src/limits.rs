//! Reading whole files, up to a size: nothing read into memory is larger than what a file of
//! its kind can be.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::{Error, ErrorKind, Result};

/// Largest JSON side file (config, modules, flags) that is read. Published ones are below 1 MB.
pub(crate) const MAX_JSON_BYTES: u64 = 64 << 20;

/// Largest tokenizer that is read. The largest published one, UMT5's, has 17 MB.
pub(crate) const MAX_TOKENIZER_BYTES: u64 = 512 << 20;

/// The bytes of the file at `path`.
///
/// # Errors
///
/// [`Error::io`] if it cannot be read; an error of `kind` if it has more than `limit` bytes.
pub(crate) fn read_file(path: &Path, limit: u64, kind: ErrorKind) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| Error::io(path, "read the file", e))?;
    let mut bytes = Vec::new();
    // A file can grow, and a pipe has no size: the limit is kept while reading.
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(path, "read the file", e))?;
    if bytes.len() as u64 > limit {
        let message = format!("the file has more than {limit} bytes");
        return Err(Error::new(kind, message).at(path.display()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_at_the_limit_is_read_and_one_above_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        std::fs::write(&path, "12345").unwrap();
        let read = |limit| read_file(&path, limit, ErrorKind::Config);
        assert_eq!(read(5).unwrap(), b"12345");
        let error = read(4).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(
            error
                .to_string()
                .ends_with("x.json: the file has more than 4 bytes")
        );
        let missing = read_file(&path.join("y"), 4, ErrorKind::Config).unwrap_err();
        assert_ne!(missing.kind(), ErrorKind::Config);
    }
}
