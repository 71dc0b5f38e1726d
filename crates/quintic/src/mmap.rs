//! Read-only memory maps of weight files.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

use crate::tensor::ByteOwner;
use crate::{Error, Result};

/// A whole file, mapped read-only. Opening one costs no memory: pages are read when they
/// are first touched, and the system may drop them again.
///
/// The file must not be changed while it is mapped. Replacing it by renaming a new file
/// over it is harmless, since the map keeps the old file; writing into it, or cutting it
/// short, is not: other values may be read, and touching a page that no longer exists ends
/// the process (`SIGBUS` on Unix).
pub struct MappedFile {
    path: PathBuf,
    contents: Contents,
}

enum Contents {
    Mapped(Mmap),
    /// An empty file, which some systems refuse to map, or one that was never on disk.
    InMemory(Vec<u8>),
}

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) or
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if there is no such file, if it is not a
    /// regular file or if the system refuses to map it.
    pub fn open(path: &Path) -> Result<Self> {
        // Asked before opening, which would wait for ever on a pipe that nobody writes to.
        let metadata = std::fs::metadata(path)
            .map_err(|error| Error::io(path, "read the size of the file", error))?;
        if !metadata.is_file() {
            return Err(Error::new(crate::ErrorKind::Io, "not a regular file").at(path.display()));
        }
        let file = File::open(path).map_err(|error| Error::io(path, "open the file", error))?;
        let metadata = file
            .metadata()
            .map_err(|error| Error::io(path, "read the size of the file", error))?;
        if metadata.len() == 0 {
            return Ok(MappedFile::in_memory(path, Vec::new()));
        }
        // SAFETY: the map is private to this type, read-only, and lives as long as the bytes
        // it lends. What the compiler cannot be promised is that no other process writes to
        // the file or truncates it meanwhile: no portable lock prevents that. Every reader
        // of weight files that maps them accepts this, and so do we, for two reasons. The
        // bytes are only ever read as numbers, for which all bit patterns are valid, and
        // what was validated (offsets, lengths) has been copied out of the map, so changed
        // contents can give wrong numbers but no access outside the map. And hubs and
        // savers replace weight files by renaming, which leaves this map untouched. A file
        // cut short under us ends the process with SIGBUS; the type's docs say so.
        let map = unsafe { Mmap::map(&file) }
            .map_err(|error| Error::io(path, "map the file into memory", error))?;
        Ok(MappedFile {
            path: path.to_path_buf(),
            contents: Contents::Mapped(map),
        })
    }

    /// Bytes that take the place of a file, under the path that errors are to name.
    pub(crate) fn in_memory(path: &Path, bytes: Vec<u8>) -> Self {
        MappedFile {
            path: path.to_path_buf(),
            contents: Contents::InMemory(bytes),
        }
    }

    /// Where the file was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The contents.
    pub fn bytes(&self) -> &[u8] {
        match &self.contents {
            Contents::Mapped(map) => map,
            Contents::InMemory(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl ByteOwner for MappedFile {
    fn bytes(&self) -> &[u8] {
        self.bytes()
    }

    /// Pages are dropped from this process; the system may still keep them in its cache.
    fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Contents::Mapped(map) = &self.contents {
            // SAFETY: the map is shared with the file and never written to, so a page that is
            // dropped comes back from the file with the same contents. memmap2 rounds the
            // range to pages, which may drop neighbours' bytes as well: the same holds.
            let advised = unsafe {
                map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
            };
            // Advice that is not taken costs memory only.
            let _ = advised;
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.path.display(), self.bytes().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn maps_files_even_empty_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(MappedFile::open(&path).unwrap().bytes(), b"");
        std::fs::write(&path, b"abc").unwrap();
        assert_eq!(MappedFile::open(&path).unwrap().as_ref(), b"abc");
    }

    #[test]
    fn refuses_folders_and_missing_files() {
        let folder = tempfile::tempdir().unwrap();
        let error = MappedFile::open(folder.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        let error = MappedFile::open(&folder.path().join("none")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
}
