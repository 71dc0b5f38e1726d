//! Quantile curves as an SVG file.
//!
//! Across: quantiles, spread so that each 9 takes as much room as the one before. Upwards: the
//! logarithm of a difference. Every point is a number of the table; lines only guide the eye.

use std::fmt::Write;

use quintic::verify::QUANTILES;

/// One way to compute.
pub(super) struct Curve {
    /// Shown at the curve's end.
    pub(super) label: String,
    pub(super) style: Style,
    /// The quantiles, then the maximum. What has no logarithm is left out.
    pub(super) values: [f64; N_POINTS],
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Measured here.
    Own,
    /// From somewhere else.
    Other,
    /// The sizes of the values themselves.
    Sizes,
}

pub(super) const N_POINTS: usize = QUANTILES.len() + 1;

/// Distinct to people who do not see all colours (Okabe and Ito's).
const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a51a3",
];
const GREY: &str = "#8a8a8a";

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 520.0;
/// The frame of the axes.
const LEFT: f64 = 84.0;
const RIGHT: f64 = 670.0;
const TOP: f64 = 76.0;
const BOTTOM: f64 = 452.0;
/// Between labels.
const LINE: f64 = 18.0;
/// Decades shown if there is nothing to show.
const NO_DECADES: (i32, i32) = (-7, 0);

/// The picture. Labels and titles may hold anything.
pub(super) fn svg(title: &str, subtitle: &str, curves: &[Curve]) -> String {
    let decades = decades(curves);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"Helvetica, Arial, sans-serif\" \
         font-size=\"13\" fill=\"#222222\">\n\
         <title>{}</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n",
        escape(title)
    );
    text(
        &mut svg,
        (LEFT, 32.0),
        "start",
        "font-size=\"17\" font-weight=\"bold\"",
        title,
    );
    text(
        &mut svg,
        (LEFT, 54.0),
        "start",
        "fill=\"#555555\"",
        subtitle,
    );
    grid(&mut svg, decades);
    let mut labels = Vec::new();
    let mut colours = COLOURS.iter().cycle();
    for curve in curves {
        let colour = match curve.style {
            Style::Sizes => GREY,
            Style::Own | Style::Other => colours.next().unwrap_or(&GREY),
        };
        let end = draw(&mut svg, curve, colour, decades);
        labels.push((end, colour, curve));
    }
    legend(&mut svg, labels);
    svg.push_str("</svg>\n");
    svg
}

/// The decades that hold all values: from 10^first to 10^last.
fn decades(curves: &[Curve]) -> (i32, i32) {
    let logs = curves.iter().flat_map(|curve| curve.values);
    let logs: Vec<f64> = logs.filter_map(log).collect();
    let lowest = logs.iter().copied().fold(f64::INFINITY, f64::min).floor();
    let highest = logs
        .iter()
        .copied()
        .fold(f64::NEG_INFINITY, f64::max)
        .ceil();
    if logs.is_empty() {
        return NO_DECADES;
    }
    // f64 has 632 decades, so both are far inside an i32.
    let (first, last) = (lowest as i32, highest as i32);
    (first, last.max(first + 1))
}

fn log(value: f64) -> Option<f64> {
    (value > 0.0 && value.is_finite()).then(|| value.log10())
}

/// Where point `point` is: as far to the right as its quantile has nines; the maximum last.
fn x(point: usize) -> f64 {
    let nines = |q: f64| -(1.0 - q).log10();
    let last = nines(QUANTILES[QUANTILES.len() - 1]);
    let at = QUANTILES.get(point).map_or(last + 0.8, |&q| nines(q));
    let share = (at - nines(QUANTILES[0])) / (last + 0.8 - nines(QUANTILES[0]));
    LEFT + 24.0 + share * (RIGHT - LEFT - 48.0)
}

fn y(log: f64, (first, last): (i32, i32)) -> f64 {
    let share = (log - f64::from(first)) / f64::from(last - first);
    BOTTOM - share * (BOTTOM - TOP)
}

fn grid(svg: &mut String, (first, last): (i32, i32)) {
    // At most a dozen numbers beside the axis.
    let step = (last - first).div_euclid(12) + 1;
    for decade in first..=last {
        let y = y(f64::from(decade), (first, last));
        line(svg, (LEFT, y), (RIGHT, y), "stroke=\"#e4e4e4\"");
        if (decade - first) % step == 0 {
            let label = format!(
                "10<tspan dy=\"-6\" font-size=\"10\">{}</tspan>",
                decade.to_string().replace('-', "\u{2212}")
            );
            // From the left: renderers disagree about the end of a text that has a raised part.
            raw_text(svg, (LEFT - 42.0, y + 5.0), "start", "", &label);
        }
    }
    for point in 0..N_POINTS {
        let label = match QUANTILES.get(point) {
            // 0.9999 * 100 is not 99.99 in binary.
            Some(q) => format!("{}\u{2009}%", (q * 1e6).round() / 1e4),
            None => "max".to_owned(),
        };
        line(
            svg,
            (x(point), TOP),
            (x(point), BOTTOM),
            "stroke=\"#e4e4e4\"",
        );
        text(svg, (x(point), BOTTOM + 20.0), "middle", "", &label);
    }
    let frame = "stroke=\"#444444\" stroke-width=\"1.2\"";
    line(svg, (LEFT, TOP), (LEFT, BOTTOM), frame);
    line(svg, (LEFT, BOTTOM), (RIGHT, BOTTOM), frame);
    let middle = (LEFT + RIGHT) / 2.0;
    text(
        svg,
        (middle, BOTTOM + 46.0),
        "middle",
        "",
        "share of all values that differ by no more",
    );
    let (x, y) = (24.0, (TOP + BOTTOM) / 2.0);
    let turned = format!("transform=\"rotate(-90 {x} {y})\"");
    text(svg, (x, y), "middle", &turned, "|difference|");
}

/// Draws a curve and returns the height of its last point, if it has any.
fn draw(svg: &mut String, curve: &Curve, colour: &str, decades: (i32, i32)) -> Option<f64> {
    let points = curve.values.iter().enumerate();
    let points: Vec<(f64, f64)> = points
        .filter_map(|(point, &value)| Some((x(point), y(log(value)?, decades))))
        .collect();
    let dashes = match curve.style {
        Style::Own => "",
        Style::Other => " stroke-dasharray=\"7 4\"",
        Style::Sizes => " stroke-dasharray=\"2 4\"",
    };
    let path: Vec<String> = points
        .iter()
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    if path.len() > 1 {
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}/>",
            path.join(" ")
        );
    }
    if curve.style != Style::Sizes {
        for (x, y) in &points {
            let fill = match curve.style {
                Style::Other => "#ffffff",
                _ => colour,
            };
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{fill}\" \
                 stroke=\"{colour}\" stroke-width=\"1.5\"/>"
            );
        }
    }
    points.last().map(|&(_, y)| y)
}

/// Labels beside the curves' ends, pushed apart; those without an end below the others.
fn legend(svg: &mut String, mut labels: Vec<(Option<f64>, &str, &Curve)>) {
    labels.sort_by(|a, b| a.0.unwrap_or(BOTTOM).total_cmp(&b.0.unwrap_or(BOTTOM)));
    let wanted: Vec<f64> = labels
        .iter()
        .map(|(end, ..)| end.unwrap_or(BOTTOM))
        .collect();
    for ((end, colour, curve), at) in labels.into_iter().zip(spread(&wanted)) {
        if let Some(end) = end {
            let style = format!("stroke=\"{colour}\" stroke-opacity=\"0.5\"");
            line(
                svg,
                (x(N_POINTS - 1) + 6.0, end),
                (RIGHT + 14.0, at),
                &style,
            );
        }
        let label = match end {
            Some(_) => curve.label.clone(),
            None => format!("{}: no difference to draw", curve.label),
        };
        let style = format!("fill=\"{colour}\" font-weight=\"bold\"");
        text(svg, (RIGHT + 18.0, at + 4.5), "start", &style, &label);
    }
}

/// Heights at least a line apart, near the wanted ones, which rise; from the top if there is no
/// room for all.
fn spread(wanted: &[f64]) -> Vec<f64> {
    let mut heights = Vec::with_capacity(wanted.len());
    let mut next = TOP;
    for &height in wanted {
        next = f64::max(next, height);
        heights.push(next);
        next += LINE;
    }
    // What was pushed out at the bottom pushes back.
    let mut limit = BOTTOM;
    for height in heights.iter_mut().rev() {
        *height = height.min(limit);
        limit = *height - LINE;
    }
    if heights.first().is_some_and(|&first| first < TOP) {
        for (place, height) in heights.iter_mut().enumerate() {
            *height = TOP + place as f64 * LINE;
        }
    }
    heights
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), style: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" {style}/>",
        from.0, from.1, to.0, to.1
    );
}

fn text(svg: &mut String, at: (f64, f64), anchor: &str, style: &str, content: &str) {
    raw_text(svg, at, anchor, style, &escape(content));
}

/// Text that is XML already.
fn raw_text(svg: &mut String, at: (f64, f64), anchor: &str, style: &str, content: &str) {
    let space = if style.is_empty() { "" } else { " " };
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\"{space}{style}>{content}</text>",
        at.0, at.1
    );
}

/// Text for XML 1.0, which has no way to hold most control characters.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' | '\r' => out.push(' '),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(label: &str, values: [f64; N_POINTS]) -> Curve {
        Curve {
            label: label.to_owned(),
            style: Style::Own,
            values,
        }
    }

    #[test]
    fn decades_hold_all_that_has_a_logarithm() {
        let of = |values| decades(&[curve("", values)]);
        assert_eq!(of([0.0, 2e-5, 1e-3, 0.02, 0.5, f64::INFINITY]), (-5, 0));
        assert_eq!(of([1.0; N_POINTS]), (0, 1));
        assert_eq!(of([0.0, 0.0, 0.0, f64::NAN, 0.0, 0.0]), NO_DECADES);
        assert_eq!(of([5e-324, 1.0, 1.0, 1.0, 1.0, f64::MAX]), (-324, 309));
    }

    #[test]
    fn each_nine_takes_as_much_room() {
        let steps: Vec<f64> = (1..4).map(|point| x(point + 1) - x(point)).collect();
        assert!(
            steps.iter().all(|step| (step - steps[0]).abs() < 1e-9),
            "{steps:?}"
        );
        assert!(x(0) > LEFT && x(N_POINTS - 1) < RIGHT);
        assert_eq!(y(-3.0, (-3, 1)), BOTTOM);
        assert_eq!(y(1.0, (-3, 1)), TOP);
    }

    #[test]
    fn labels_do_not_overlap_and_stay_inside() {
        let apart = |heights: &[f64]| heights.windows(2).all(|pair| pair[1] - pair[0] >= LINE);
        assert_eq!(spread(&[100.0, 200.0]), [100.0, 200.0]);
        assert_eq!(spread(&[100.0, 101.0]), [100.0, 100.0 + LINE]);
        let low = spread(&[BOTTOM - 1.0, BOTTOM, BOTTOM]);
        assert_eq!(low, [BOTTOM - 2.0 * LINE, BOTTOM - LINE, BOTTOM]);
        let many = spread(&[300.0; 60]);
        assert!(apart(&many) && many[0] == TOP);
        assert!(spread(&[]).is_empty());
    }

    #[test]
    fn anything_may_be_in_a_label() {
        let svg = svg("a<b>&\"c\"\u{1}", "\n", &[curve("x & y", [0.0; N_POINTS])]);
        assert!(svg.contains("a&lt;b&gt;&amp;&quot;c&quot;\u{fffd}"));
        assert!(svg.contains("x &amp; y: no difference to draw"));
        assert!(!svg.contains("<polyline") && !svg.contains("NaN"));
    }

    #[test]
    fn a_curve_has_all_its_points() {
        let values = [1e-6, 2e-6, 3e-6, 4e-6, 5e-6, 6e-6];
        let picture = svg("t", "s", &[curve("f32", values)]);
        assert_eq!(picture.matches("<circle").count(), N_POINTS);
        assert!(picture.contains(">99.99\u{2009}%<") && picture.contains(">max<"));
        // A gap is left out of the line.
        let holed = svg(
            "t",
            "s",
            &[curve("f32", [0.0, 2e-6, f64::NAN, 4e-6, 5e-6, 6e-6])],
        );
        assert_eq!(holed.matches("<circle").count(), N_POINTS - 2);
    }
}
