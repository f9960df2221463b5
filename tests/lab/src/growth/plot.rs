//! A plot of a few lines over logarithmic axes, as SVG.

use crate::svg::{self, text};
use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const MARGIN: f64 = 60.0;
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#555555"];

/// A line: what it is, and its points.
pub type Line<'a> = (&'a str, Vec<(f64, f64)>);

/// Draws lines; points that no logarithm has are left out.
pub fn logarithmic(title: &str, across: &str, lines: &[Line<'_>]) -> String {
    let drawn = |(x, y): &(f64, f64)| *x > 0.0 && *y > 0.0 && x.is_finite() && y.is_finite();
    let points = || lines.iter().flat_map(|(_, points)| points).filter(|point| drawn(point));
    let (left, right) = decades(points().map(|point| point.0));
    let (bottom, top) = decades(points().map(|point| point.1));
    let at = |x: f64, y: f64| {
        let x = MARGIN + (x.log10() - left) / (right - left) * (WIDTH - 2.0 * MARGIN);
        let y = HEIGHT - MARGIN - (y.log10() - bottom) / (top - bottom) * (HEIGHT - 2.0 * MARGIN);
        (x, y)
    };
    let legend = 18.0 * lines.len() as f64;
    let mut svg = svg::begin(WIDTH, HEIGHT + legend);
    text(&mut svg, WIDTH / 2.0, MARGIN / 2.0, "middle", title);
    text(&mut svg, WIDTH / 2.0, HEIGHT - MARGIN / 4.0, "middle", across);
    let ticks = |from: f64, to: f64| (from as i32..=to as i32).map(|n| 10f64.powi(n));
    let grid = |svg: &mut String, (a, b): (f64, f64), (c, d): (f64, f64)| {
        let _ = writeln!(
            svg,
            "<line x1=\"{a:.1}\" y1=\"{b:.1}\" x2=\"{c:.1}\" y2=\"{d:.1}\" stroke=\"#ccc\"/>"
        );
    };
    for x in ticks(left, right) {
        let (from, to) = (at(x, 10f64.powf(bottom)), at(x, 10f64.powf(top)));
        grid(&mut svg, from, to);
        text(&mut svg, from.0, from.1 + 16.0, "middle", &x.to_string());
    }
    for y in ticks(bottom, top) {
        let (from, to) = (at(10f64.powf(left), y), at(10f64.powf(right), y));
        grid(&mut svg, from, to);
        text(&mut svg, from.0 - 6.0, from.1 + 4.0, "end", &y.to_string());
    }
    for (n, ((name, points), colour)) in lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let places: Vec<_> = points.iter().filter(|p| drawn(p)).map(|(x, y)| at(*x, *y)).collect();
        let path: Vec<_> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let path = path.join(" ");
        let _ = writeln!(
            svg,
            "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
        );
        for (x, y) in places {
            let _ =
                writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
        }
        let y = HEIGHT + 18.0 * n as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"{MARGIN}\" y=\"{:.0}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>",
            y - 10.0
        );
        text(&mut svg, MARGIN + 20.0, y, "start", name);
    }
    svg.push_str("</svg>\n");
    svg
}

/// The powers of ten that all values lie between; at least one decade.
fn decades(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value.log10().floor()), high.max(value.log10().ceil()))
    });
    if low > high {
        return (0.0, 1.0);
    }
    (low, high.max(low + 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_that_can_be_drawn_is() {
        let line = vec![(10.0, 1.0), (1000.0, 500.0), (0.0, 3.0), (10.0, f64::NAN)];
        let svg = logarithmic("a < b", "messages", &[("one", line), ("none", Vec::new())]);
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains("a &lt; b"));
        assert_eq!(decades([3.0, 70.0].into_iter()), (0.0, 2.0));
        assert_eq!(decades([10.0].into_iter()), (1.0, 2.0));
    }
}
