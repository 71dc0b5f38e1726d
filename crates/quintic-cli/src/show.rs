//! Numbers and tables for people.

/// `1234567` as `1,234,567`.
pub(crate) fn thousands(number: u128) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3 + 1);
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in units of 1,000, such as `307.8 MB`.
pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["bytes", "kB", "MB", "GB", "TB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    // What would be shown as 1000.0 is 1.0 of the next unit.
    while value >= 999.95
        && let Some(next) = units.next()
    {
        value /= 1000.0;
        unit = next;
    }
    match unit {
        "bytes" => format!("{bytes} bytes"),
        unit => format!("{value:.1} {unit}"),
    }
}

/// Lines of a label and a value, values aligned. Further lines of a value stand under it; an
/// empty value has no line.
pub(crate) fn aligned(rows: &[(String, Vec<String>)]) -> String {
    let width = rows
        .iter()
        .map(|(label, _)| label.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for (label, values) in rows {
        let mut label = label.as_str();
        for value in values {
            text += &format!("{label:width$}  {value}\n");
            label = "";
        }
    }
    text.truncate(text.trim_end_matches('\n').len());
    text
}

/// A table. The first `n_words` columns hold words, which begin in line; numbers end in line.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]], n_words: usize) -> String {
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| match column < n_words {
            true => format!("{cell:width$}"),
            false => format!("{cell:>width$}"),
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        line.trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(
            [0, 999, 1000, 1234567].map(thousands),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(size(0), "0 bytes");
        assert_eq!(size(999), "999 bytes");
        assert_eq!(size(1000), "1.0 kB");
        assert_eq!(size(307_844_608), "307.8 MB");
        assert_eq!(size(999_949), "999.9 kB");
        assert_eq!(size(999_999), "1.0 MB");
        assert_eq!(size(u64::MAX), "18446744.1 TB");
    }

    #[test]
    fn columns() {
        let row = |label: &str, values: &[&str]| {
            (
                label.to_owned(),
                values.iter().map(|&value| value.to_owned()).collect(),
            )
        };
        let rows = [row("a", &["1"]), row("long", &["2", "3"]), row("none", &[])];
        assert_eq!(aligned(&rows), "a     1\nlong  2\n      3");
    }

    #[test]
    fn tables() {
        let rows = [["name", "n"], ["x", "100"]].map(|row| row.map(str::to_owned));
        assert_eq!(super::columns(&rows, 1), "name    n\nx     100");
        assert_eq!(super::columns(&rows, 2), "name  n\nx     100");
    }
}
