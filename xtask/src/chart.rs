// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A bar chart as SVG: groups of horizontal bars, each in two pieces.

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
const FIRST: &str = "#4c78a8";
const SECOND: &str = "#e45756";

/// Draws them; `legend` says what the two pieces are.
pub(crate) fn draw(legend: [&str; 2], groups: &[Group]) -> String {
    let bars = || groups.iter().flat_map(|group| &group.bars);
    let longest = bars().map(|bar| bar.first + bar.second).fold(1.0, f64::max);
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
            let (first, second) = (bar.first * unit, bar.second * unit);
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
                bar.first + bar.second,
                h = BAR - 2.0
            );
            y += BAR;
        }
        y += GAP;
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_in_proportion_and_the_longest_fills_the_width() {
        let bar = |name, first, second| Bar {
            name,
            first,
            second,
        };
        let group = Group {
            name: "boot".to_owned(),
            bars: vec![bar("alone", 1.0, 0.0), bar("shadow", 1.0, 3.0)],
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
    }
}
