//! A file that appears under its name only when it is complete.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::{Error, Result};

/// A buffered temporary file beside its target.
pub struct AtomicFile {
    target: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl AtomicFile {
    /// Starts writing what will become `target`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) or
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if the target's folder cannot be
    /// written to, or the target is a folder.
    pub fn create(target: &Path) -> Result<Self> {
        if target.is_dir() {
            return Err(
                Error::new(crate::ErrorKind::Io, "is a folder, expected a file name")
                    .at(target.display()),
            );
        }
        let folder = match target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".quintic-").suffix(".tmp");
        #[cfg(unix)]
        {
            // What `File::create` would give, less the umask; a temporary file is private.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let file = builder
            .tempfile_in(folder)
            .map_err(|e| Error::io(folder, "create a file in the folder", e))?;
        Ok(AtomicFile {
            target: target.to_owned(),
            file: BufWriter::with_capacity(1 << 20, file),
        })
    }

    /// Appends bytes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io), for instance on a full disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|e| Error::io(&self.target, "write", e))
    }

    /// Writes bytes at an offset from the start of the file.
    ///
    /// # Errors
    ///
    /// As [`AtomicFile::write`].
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.write_all(bytes))
            .map_err(|e| Error::io(&self.target, "write", e))
    }

    /// Flushes to the disk and gives the file its name.
    ///
    /// # Errors
    ///
    /// As [`AtomicFile::write`].
    pub fn finish(self) -> Result<()> {
        let target = self.target;
        let fail = |e: std::io::Error| Error::io(&target, "write", e);
        let file = self.file.into_inner().map_err(|e| fail(e.into_error()))?;
        File::sync_all(file.as_file()).map_err(fail)?;
        file.persist(&target).map_err(|e| fail(e.error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_changes_only_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        std::fs::write(&target, "old").unwrap();
        let mut file = AtomicFile::create(&target).unwrap();
        file.write(b"new!").unwrap();
        file.write_at(1, b"E").unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        file.finish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"nEw!");
        drop(AtomicFile::create(&target).unwrap());
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "nothing left behind"
        );
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = AtomicFile::create(Path::new("/nowhere/out")).err().unwrap();
        assert_eq!(error.kind(), crate::ErrorKind::NotFound);
        assert!(
            error.to_string().starts_with("/nowhere: cannot create"),
            "{error}"
        );
    }
}
