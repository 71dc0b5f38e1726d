//! One error type for the whole library: what went wrong, where, and what was expected.

use std::error::Error as StdError;
use std::fmt;
use std::path::Path;

/// The library's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What class of thing went wrong. Faces map it to exit codes, exceptions and status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file or folder could not be opened, read or written.
    Io,
    /// A model, file or cached repository is not where it was looked for.
    NotFound,
    /// `config.json` (or a sibling of it) is damaged, incomplete or contradicts itself.
    Config,
    /// A weight file is damaged, or its tensors do not fit the config.
    Checkpoint,
    /// A tokenizer file is damaged or does not fit its model.
    Tokenizer,
    /// Texts, token ids, masks or options given by the caller are not usable.
    Input,
    /// A well-formed request for something that this build or machine does not do.
    Unsupported,
    /// A download from a model hub failed.
    Download,
    /// A device failed, or its memory gave out.
    Device,
    /// The caller asked for an end before there was a result.
    Interrupted,
}

impl ErrorKind {
    /// Every kind, for tables that must cover them all.
    pub const ALL: [ErrorKind; 10] = [
        ErrorKind::Io,
        ErrorKind::NotFound,
        ErrorKind::Config,
        ErrorKind::Checkpoint,
        ErrorKind::Tokenizer,
        ErrorKind::Input,
        ErrorKind::Unsupported,
        ErrorKind::Download,
        ErrorKind::Device,
        ErrorKind::Interrupted,
    ];
}

/// An error with its kind, its place (file, tensor, row or field), a message that says
/// what was found and what was expected, and sometimes a hint.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    place: Option<String>,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A new error. The message is lower case, has no full stop, and quotes literals in
    /// backticks.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            place: None,
            message: message.into(),
            hint: None,
            source: None,
        }))
    }

    /// An error about the config, see [`ErrorKind::Config`].
    pub fn config(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Config, message)
    }

    /// An error about weights, see [`ErrorKind::Checkpoint`].
    pub fn checkpoint(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Checkpoint, message)
    }

    /// An error about a tokenizer, see [`ErrorKind::Tokenizer`].
    pub fn tokenizer(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Tokenizer, message)
    }

    /// An error about the caller's data, see [`ErrorKind::Input`].
    pub fn input(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Input, message)
    }

    /// A request that cannot be served, see [`ErrorKind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Unsupported, message)
    }

    /// The end that the caller asked for, see [`ErrorKind::Interrupted`].
    pub fn interrupted() -> Self {
        Error::new(ErrorKind::Interrupted, "interrupted before the end")
    }

    /// An operating-system error at `path`; "no such file" becomes [`ErrorKind::NotFound`].
    pub fn io(path: &Path, doing: &str, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Io,
        };
        Error::new(kind, format!("cannot {doing}: {source}")).at(path.display())
    }

    /// Puts a place in front of the message. Called again on the way up, it puts the wider
    /// place before the narrower one.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.0.place = Some(match self.0.place.take() {
            Some(inner) => format!("{place}: {inner}"),
            None => place.to_string(),
        });
        self
    }

    /// As [`Error::at`], for an error that has no place yet.
    #[must_use]
    pub fn at_if_placeless(self, place: impl fmt::Display) -> Self {
        if self.0.place.is_some() {
            self
        } else {
            self.at(place)
        }
    }

    /// Adds a line that says what the reader could do. The first hint given is kept.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint.get_or_insert(hint.into());
        self
    }

    /// All there is to say: place, message, causes that the message does not quote, hint.
    pub fn report(&self) -> String {
        let mut text = String::new();
        if let Some(place) = self.place() {
            text += &format!("{place}: ");
        }
        text += self.message();
        let mut cause = self.source();
        while let Some(inner) = cause {
            let inner_text = inner.to_string();
            if !text.contains(&inner_text) {
                text += &format!("\n  caused by: {inner_text}");
            }
            cause = inner.source();
        }
        if let Some(hint) = self.hint_text() {
            text += &format!("\n\nhint: {hint}");
        }
        text
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn source_error(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// File, tensor, row or field that the error is about.
    pub fn place(&self) -> Option<&str> {
        self.0.place.as_deref()
    }

    /// What was found and what was expected, without the place and the hint.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What the reader could do, if there is something to say.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.0.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.0.message)?;
        if let Some(hint) = &self.0.hint {
            write!(f, "\n\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_causes_and_ends_with_the_hint() {
        let cause = std::io::Error::other("the disk is on fire");
        let error = Error::config("broken")
            .at("config.json")
            .hint("repair it")
            .source_error(cause);
        assert_eq!(
            error.report(),
            "config.json: broken\n  caused by: the disk is on fire\n\nhint: repair it"
        );
    }

    #[test]
    fn shows_place_message_and_hint() {
        let error = Error::config("field `d_model` is 0, expected at least 1")
            .at("config.json")
            .at("model")
            .hint("was the file edited?")
            .hint("never shown");
        assert_eq!(
            error.to_string(),
            "model: config.json: field `d_model` is 0, expected at least 1\n\nhint: was the file edited?"
        );
        assert_eq!(error.kind(), ErrorKind::Config);
    }

    #[test]
    fn a_missing_file_is_not_found_and_keeps_its_cause() {
        let path = Path::new("/nowhere/at/all");
        let cause = std::fs::read(path).unwrap_err();
        let error = Error::io(path, "read the file", cause);
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(
            error
                .to_string()
                .starts_with("/nowhere/at/all: cannot read the file: ")
        );
    }
}
