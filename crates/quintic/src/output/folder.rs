//! A folder that appears under its name only when everything is in it.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A folder that has another name until it is complete.
pub(crate) struct Folder {
    target: PathBuf,
    temporary: tempfile::TempDir,
}

impl Folder {
    /// Starts what will become `target`, which must not be there, or be empty.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if the target has something in it, or
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if nothing can be written beside it.
    pub(crate) fn create(target: &Path) -> Result<Self> {
        let is_empty = std::fs::read_dir(target).map(|mut entries| entries.next().is_none());
        match is_empty {
            Ok(true) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Ok(false) => {
                return Err(Error::input("the folder is not empty, expected a new one")
                    .at(target.display()));
            }
            Err(error) => return Err(Error::io(target, "create the folder", error)),
        }
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".quintic-").suffix(".tmp");
        #[cfg(unix)]
        {
            // What `create_dir` would give, less the umask; a temporary folder is private.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o777));
        }
        let temporary = builder
            .tempdir_in(parent)
            .map_err(|error| Error::io(parent, "create a folder in the folder", error))?;
        Ok(Folder {
            target: target.to_owned(),
            temporary,
        })
    }

    /// Where its files go for now.
    pub(crate) fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Gives the folder its name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if somebody has put something there meanwhile.
    pub(crate) fn finish(self) -> Result<()> {
        let fail = |error| Error::io(&self.target, "give the folder its name", error);
        // Only Unix renames onto an empty folder.
        if self.target.is_dir() {
            std::fs::remove_dir(&self.target).map_err(fail)?;
        }
        std::fs::rename(self.temporary.path(), &self.target).map_err(fail)?;
        let _ = self.temporary.keep();
        Ok(())
    }
}

/// Copies `from/name` to `to/name` and adds the name to `files`, if the file is there.
pub(crate) fn copy_if_there(
    from: &Path,
    name: &Path,
    to: &Path,
    files: &mut Vec<PathBuf>,
) -> Result<()> {
    let (from, to) = (from.join(name), to.join(name));
    if !from.is_file() {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)
            .map_err(|error| Error::io(parent, "create the folder", error))?;
    }
    copy(&from, &to)?;
    files.push(name.to_owned());
    Ok(())
}

/// Contents alone: what is read-only in a cache need not be so in a folder of one's own.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = File::open(from).map_err(|error| Error::io(from, "open the file", error))?;
    let mut target = File::create(to).map_err(|error| Error::io(to, "create the file", error))?;
    std::io::copy(&mut source, &mut target).map_err(|error| Error::io(to, "write", error))?;
    Ok(())
}
