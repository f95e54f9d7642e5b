// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A bar chart as SVG: groups of horizontal bars, each in two pieces. A bar beside which the others could not be told apart is cut
//! short, which can be seen; its figure stands at its end like every other's.

use std::fmt::Write;

/// A bar of two pieces, in whatever unit all bars share.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    pub(crate) name: &'static str,
    pub(crate) first: f64,
    pub(crate) second: f64,
}

/// Bars that belong together.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) bars: Vec<Bar>,
}

const WIDTH: f64 = 760.0;
const LEFT: f64 = 170.0;
const RIGHT: f64 = 60.0;
const TOP: f64 = 40.0;
const BAR: f64 = 14.0;
const GAP: f64 = 12.0;
/// A bar is cut that is more than so many times as long as the next shorter one.
const STANDS_OUT: f64 = 3.0;
/// Where a cut bar has its gap, before its end, and how wide that is.
const CUT: f64 = 24.0;
const CUT_WIDTH: f64 = 5.0;
const FIRST: &str = "#4c78a8";
const SECOND: &str = "#e45756";

/// Draws them; `legend` says what the two pieces are.
pub(crate) fn draw(legend: [&str; 2], groups: &[Group]) -> String {
    let bars = || groups.iter().flat_map(|group| &group.bars);
    let longest = longest(bars().map(|bar| bar.first + bar.second)).max(1.0);
    let unit = (WIDTH - LEFT - RIGHT) / longest;
    let height = TOP + bars().count() as f64 * BAR + groups.len() as f64 * GAP + 20.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let [first, second] = legend;
    for (x, colour, what) in [(LEFT, FIRST, first), (LEFT + 210.0, SECOND, second)] {
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"12\" width=\"10\" height=\"10\" fill=\"{colour}\"/><text x=\"{}\" y=\"21\">{what}</text>",
            x + 15.0
        );
    }
    let mut y = TOP;
    for group in groups {
        let middle = y + group.bars.len() as f64 * BAR / 2.0 + 4.0;
        let _ = writeln!(out, "<text x=\"8\" y=\"{middle:.0}\">{}</text>", group.name);
        for bar in &group.bars {
            let length = bar.first + bar.second;
            // Of a bar that is cut, both pieces are shorter, in proportion.
            let drawn = if length > longest {
                longest / length
            } else {
                1.0
            };
            let (first, second) = (bar.first * drawn * unit, bar.second * drawn * unit);
            let text = y + BAR - 4.0;
            let _ = writeln!(
                out,
                "<text x=\"{:.0}\" y=\"{text:.0}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{LEFT}\" y=\"{y}\" width=\"{first:.1}\" height=\"{h}\" fill=\"{FIRST}\"/>\
                 <rect x=\"{:.1}\" y=\"{y}\" width=\"{second:.1}\" height=\"{h}\" fill=\"{SECOND}\"/>\
                 <text x=\"{:.1}\" y=\"{text:.0}\">{:.2}</text>",
                LEFT - 5.0,
                bar.name,
                LEFT + first,
                LEFT + first + second + 4.0,
                length,
                h = BAR - 2.0
            );
            if length > longest {
                let _ = writeln!(
                    out,
                    "<path d=\"M{:.1} {y}h{CUT_WIDTH}l-6 {h}h-{CUT_WIDTH}z\" fill=\"white\"/>",
                    WIDTH - RIGHT - CUT,
                    h = BAR - 2.0
                );
            }
            y += BAR;
        }
        y += GAP;
    }
    out + "</svg>\n"
}

/// The longest of these lengths that does not stand out: what fills the width.
fn longest(lengths: impl Iterator<Item = f64>) -> f64 {
    let mut lengths: Vec<f64> = lengths.collect();
    lengths.sort_by(f64::total_cmp);
    while let [.., next, last] = lengths[..]
        && last > next * STANDS_OUT
    {
        lengths.pop();
    }
    lengths.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(name: &'static str, first: f64, second: f64) -> Bar {
        Bar {
            name,
            first,
            second,
        }
    }

    #[test]
    fn a_bar_that_stands_out_is_cut_and_keeps_its_figure() {
        let bars = vec![bar("a", 1.0, 0.0), bar("b", 2.0, 0.0), bar("c", 4.0, 12.0)];
        let group = Group {
            name: "models".to_owned(),
            bars,
        };
        let drawn = draw(["theirs", "ours"], &[group]);
        let full = WIDTH - LEFT - RIGHT;
        // The second fills the width, as does the third, whose pieces keep their proportion.
        for width in [full / 2.0, full, full / 4.0, full * 3.0 / 4.0] {
            assert!(drawn.contains(&format!("width=\"{width:.1}\"")), "{drawn}");
        }
        assert!(drawn.contains(">16.00<"), "{drawn}");
        assert_eq!(drawn.matches("<path").count(), 1);
    }

    #[test]
    fn lengths_are_in_proportion_and_the_longest_fills_the_width() {
        let group = Group {
            name: "boot".to_owned(),
            bars: vec![bar("alone", 1.0, 0.5), bar("shadow", 1.0, 3.0)],
        };
        let drawn = draw(["theirs", "ours"], &[group]);
        let full = WIDTH - LEFT - RIGHT;
        for width in [full / 4.0, full * 3.0 / 4.0] {
            assert!(drawn.contains(&format!("width=\"{width:.1}\"")), "{drawn}");
        }
        assert!(
            [">4.00<", ">boot<", ">theirs<"]
                .iter()
                .all(|text| drawn.contains(text)),
            "{drawn}"
        );
        assert!(!drawn.contains("<path"), "nothing stands out");
    }
}
