//! Groups of bars, as SVG: what each way to do the same takes.

use crate::svg::{self, text};
use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
/// Where bars begin, and the longest of each group ends.
const ACROSS: (f64, f64) = (220.0, 640.0);
const ROW: f64 = 18.0;
const FIRST: &str = "#0072b2";
const OTHERS: &str = "#999999";

/// What is compared, and what each way takes, in seconds.
pub type Group<'a> = (String, Vec<(&'a str, f64)>);

/// Draws each group to a scale of its own, the first way in another colour.
pub fn draw(title: &str, groups: &[Group<'_>]) -> String {
    let rows: usize = groups.iter().map(|(_, ways)| ways.len() + 2).sum();
    let height = ROW * (rows as f64 + 3.0);
    let mut svg = svg::begin(WIDTH, height);
    let mut y = 2.0 * ROW;
    text(&mut svg, WIDTH / 2.0, y, "middle", title);
    for (name, ways) in groups {
        y += 2.0 * ROW;
        text(&mut svg, ROW, y, "start", name);
        let longest = ways.iter().map(|(_, took)| *took).fold(f64::MIN_POSITIVE, f64::max);
        for (n, (way, took)) in ways.iter().enumerate() {
            y += ROW;
            let (from, to) = ACROSS;
            let width = took / longest * (to - from);
            let colour = if n == 0 { FIRST } else { OTHERS };
            text(&mut svg, from - 8.0, y, "end", way);
            let _ = writeln!(
                svg,
                "<rect x=\"{from}\" y=\"{:.0}\" width=\"{width:.1}\" height=\"12\" fill=\"{colour}\"/>",
                y - 10.0
            );
            text(&mut svg, from + width + 6.0, y, "start", &format!("{took:.2} s"));
        }
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_of_each_group_goes_all_the_way() {
        let near = ("near & small".to_owned(), vec![("push", 1.0), ("XFER", 4.0)]);
        let far = ("far".to_owned(), vec![("push", 30.0)]);
        let svg = draw("seconds", &[near, far]);
        assert!(svg.contains("near &amp; small"));
        let (all, quarter) = ("width=\"420.0\"", "width=\"105.0\"");
        assert_eq!((svg.matches(all).count(), svg.matches(quarter).count()), (2, 1), "{svg}");
        assert_eq!(svg.matches(FIRST).count(), 2);
    }
}
