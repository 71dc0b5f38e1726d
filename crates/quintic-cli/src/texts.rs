//! Texts from the command line and from files.

use std::io::Read;
use std::path::Path;

use quintic::tokenizer::Tokenizer;
use quintic::{Error, Result};
use serde_json::Value;

use crate::sink::unknown_ending;

/// Names under which a column or field of texts is looked for if none is given.
const USUAL_NAMES: [&str; 5] = ["text", "prompt", "Prompt", "caption", "sentence"];

/// The texts of a file, by its ending: `.txt`, `.tsv` or `.jsonl`; `-` is lines of standard
/// input.
///
/// # Errors
///
/// Not found, no texts, not UTF-8 (naming the line), an unknown ending, a missing column or field.
pub(crate) fn read(path: &Path, column: Option<&str>) -> Result<Vec<String>> {
    let mut bytes = Vec::new();
    let is_stdin = path == Path::new("-");
    if is_stdin {
        std::io::stdin()
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io(Path::new("standard input"), "read", e))?;
    } else {
        bytes = std::fs::read(path).map_err(|e| Error::io(path, "read the texts", e))?;
    }
    let ending = path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default();
    let ending = if is_stdin { "txt" } else { ending };
    let place = if is_stdin {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    };
    let texts = parse(&bytes, ending, column).map_err(|e| e.at(&place))?;
    if texts.is_empty() {
        return Err(Error::input("there are no texts").at(&place));
    }
    Ok(texts)
}

/// Token ids of texts, each cut to `limit` if there is one.
///
/// # Errors
///
/// Those of the tokenizer, naming the text.
pub(crate) fn ids(
    texts: &[String],
    tokenizer: &Tokenizer,
    limit: Option<usize>,
) -> Result<Vec<Vec<u32>>> {
    let ids = texts.iter().enumerate().map(|(row, text)| {
        match limit {
            Some(limit) => tokenizer.encode_truncated(text, limit),
            None => tokenizer.encode(text, true),
        }
        .map_err(|e| e.at(format!("text {row}")))
    });
    ids.collect()
}

fn parse(bytes: &[u8], ending: &str, column: Option<&str>) -> Result<Vec<String>> {
    let lines = lines(bytes)?;
    match ending {
        "txt" if column.is_some() => Err(Error::input(
            "a .txt file has no columns, but `--column` was given",
        )),
        "txt" => Ok(lines.into_iter().map(str::to_owned).collect()),
        "tsv" => from_tsv(&lines, column),
        "jsonl" | "ndjson" => from_jsonl(&lines, column),
        other => Err(unknown_ending(other, ".txt, .tsv or .jsonl")),
    }
}

/// Lines without their ends (`\n` or `\r\n`). A byte-order mark and an empty last line do not
/// count. An empty line is an empty text.
fn lines(bytes: &[u8]) -> Result<Vec<&str>> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let good = &bytes[..e.valid_up_to()];
        let line = good.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let column = good.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
        Error::input(format!(
            "byte {column} is 0x{:02x}, which is not UTF-8",
            bytes[e.valid_up_to()]
        ))
        .at(format!("line {line}"))
    })?;
    let mut lines: Vec<&str> = text.split('\n').collect();
    if lines.last() == Some(&"") {
        lines.pop();
    }
    Ok(lines
        .into_iter()
        .map(|line| line.strip_suffix('\r').unwrap_or(line))
        .collect())
}

/// A header line of names, then rows. Fields are taken as they are: quotes are text.
fn from_tsv(lines: &[&str], column: Option<&str>) -> Result<Vec<String>> {
    let Some((header, rows)) = lines.split_first() else {
        return Err(Error::input("the file is empty, expected a header line"));
    };
    let names: Vec<&str> = header.split('\t').collect();
    let at = find(&names, column).ok_or_else(|| missing("column", column, &names).at("line 1"))?;
    rows.iter()
        .enumerate()
        .map(|(row, line)| {
            line.split('\t').nth(at).map(str::to_owned).ok_or_else(|| {
                Error::input(format!(
                    "there is no column {}, which is `{}`",
                    at + 1,
                    names[at]
                ))
                .at(format!("line {}", row + 2))
            })
        })
        .collect()
}

/// JSON texts, or objects with a field of text.
fn from_jsonl(lines: &[&str], column: Option<&str>) -> Result<Vec<String>> {
    let text = |line: &str| -> Result<String> {
        match serde_json::from_str(line) {
            Ok(Value::String(text)) => Ok(text),
            Ok(Value::Object(fields)) => {
                let names: Vec<&str> = fields.keys().map(String::as_str).collect();
                let at = find(&names, column).ok_or_else(|| missing("field", column, &names))?;
                match &fields[names[at]] {
                    Value::String(text) => Ok(text.clone()),
                    other => Err(Error::input(format!(
                        "field `{}` is {other}, expected a text",
                        names[at]
                    ))),
                }
            }
            Ok(_) => Err(Error::input("expected a JSON text or object")),
            Err(e) => Err(Error::input(format!("not valid JSON: {e}"))),
        }
    };
    lines
        .iter()
        .enumerate()
        .map(|(line_idx, line)| text(line).map_err(|e| e.at(format!("line {}", line_idx + 1))))
        .collect()
}

/// The named column; else a usual name; else the only one.
fn find(names: &[&str], column: Option<&str>) -> Option<usize> {
    match column {
        Some(column) => names.iter().position(|name| *name == column),
        None => USUAL_NAMES
            .iter()
            .find_map(|usual| names.iter().position(|name| name == usual))
            .or((names.len() == 1).then_some(0)),
    }
}

fn missing(what: &str, column: Option<&str>, names: &[&str]) -> Error {
    let wanted = match column {
        Some(column) => format!("no {what} is named `{column}`"),
        None => format!("no {what} is named {}", USUAL_NAMES.join(", ")),
    };
    Error::input(format!("{wanted}; found {}", names.join(", "))).hint("choose one by `--column`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(bytes: &[u8], ending: &str, column: Option<&str>) -> String {
        parse(bytes, ending, column).unwrap_err().to_string()
    }

    #[test]
    fn lines_of_text() {
        let texts = parse("\u{feff}a b\r\n\n  c\n".as_bytes(), "txt", None).unwrap();
        assert_eq!(texts, ["a b", "", "  c"]);
        assert_eq!(parse(b"last", "txt", None).unwrap(), ["last"]);
        assert!(parse(b"", "txt", None).unwrap().is_empty());
        assert_eq!(
            error(b"good\nb\xffd", "txt", None),
            "line 2: byte 2 is 0xff, which is not UTF-8"
        );
        assert!(error(b"a", "txt", Some("x")).contains("no columns"));
        assert!(error(b"a", "csv", None).contains("`.csv`"));
    }

    #[test]
    fn tables() {
        let table = b"id\tPrompt\n1\ta \"quoted\" cat\n2\t\n";
        assert_eq!(parse(table, "tsv", None).unwrap(), ["a \"quoted\" cat", ""]);
        assert_eq!(parse(table, "tsv", Some("id")).unwrap(), ["1", "2"]);
        assert!(
            error(table, "tsv", Some("x"))
                .contains("line 1: no column is named `x`; found id, Prompt")
        );
        assert!(error(b"id\tPrompt\n1\n", "tsv", None).starts_with("line 2: there is no column 2"));
        assert!(error(b"", "tsv", None).contains("empty"));
    }

    #[test]
    fn json_lines() {
        let texts = parse(b"\"a\"\n{\"n\":1,\"caption\":\"b\"}\n", "jsonl", None).unwrap();
        assert_eq!(texts, ["a", "b"]);
        assert!(error(b"{\"n\":1}\n", "jsonl", Some("n")).contains("line 1: field `n` is 1"));
        assert!(error(b"3", "jsonl", None).contains("expected a JSON text or object"));
        assert!(error(b"{", "jsonl", None).contains("line 1: not valid JSON"));
    }
}
